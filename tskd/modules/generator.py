"""Text from a language model: read by length, written in large batches, with randomness that belongs to the request.

Reading is bound by computation: texts of like length are read together, so that little padding is. Writing is bound by
memory, for a pass reads all weights, however many rows it writes: what was read apart is then put into one cache.

Each request brings a key, from which its own stream of random numbers follows. What is sampled therefore depends on
neither the batch that a request lands in nor on what was generated before it, so batching and resuming change nothing.
"""

import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tskd.models.generation import Ending, Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.batches import by_length, pad_left
from tskd.modules.resident import Resident

# What a padded place of the cache costs a pass that writes, in readings of its keys and values: with 135M and 270M
# parameters on one core, 5,700 and 13,000 places took as long as another pass, which reads all weights. Of a tiny model
# a pass costs more than that, and as many places as it costs tokens are always worth it.
READINGS_OF_A_PLACE = 2


class Generator(Resident):
    """Continues every row of a batch until its end token, a text to ``stop`` at, or the length limit."""

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        sampling: Sampling,
        stop: tuple[str, ...],
        label: str,
        merge_adapter: bool = False,
        reading_padding: int | None = None,
    ) -> None:
        """``reading_padding``: so much of it at most in a pass that reads; ``None`` reads a batch in one pass."""
        super().__init__(model.weights)
        self.language_model = model
        self.merge_adapter = merge_adapter
        self.reading_padding = reading_padding
        self.requests = requests
        self.sampling = sampling
        self.ending = Ending(model, stop)
        self.label = label

    def content(self) -> Any:
        return [self.language_model, self.merge_adapter, repr(self.requests), self.sampling, self.ending.stop]

    def from_journal(self, noted: Any) -> Generation:
        return Generation(*noted)

    def compute(self, indices: list[int]) -> list[Generation]:
        with self.language_model.speaking(self.merge_adapter) as network:
            return self._continue(network, [self.requests[i] for i in indices])

    def _continue(self, network: Any, requests: Sequence[Request]) -> list[Generation]:
        """All rows write together, however they were read. Finished ones leave once they are half of the batch."""
        streams = [random.Random(request.key) for request in requests]
        written: list[list[int]] = [[] for _ in requests]
        finished = [False] * len(requests)
        active = list(range(len(requests)))  # the rows of the batch that are still in the cache
        cache, mask, logits = self._read(network, [request.ids for request in requests])
        positions = mask.sum(1, keepdim=True) - 1  # of the last token of each row

        for left in reversed(range(self.sampling.max_new_tokens)):
            uniform = torch.tensor([streams[row].random() for row in active], dtype=torch.float64).to(mask.device)
            chosen = choose(logits, uniform, self.sampling)
            for row, token in zip(active, chosen.tolist(), strict=True):
                if not finished[row]:
                    written[row].append(token)
                    finished[row] = self.ending.is_reached(written[row])
            going = [place for place, row in enumerate(active) if not finished[row]]
            if left == 0 or not self.anyone(bool(going)):
                break
            going = going or [0]  # the other processes need this one in each pass; what it writes now is not kept
            if len(going) <= len(active) // 2:
                places = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(places)
                chosen, mask, positions = chosen[places], mask[places], positions[places]
                active = [active[place] for place in going]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions + 1
            logits = _next_logits(network, chosen[:, None], mask, positions, cache)
        return [self.ending.generation(tokens, done) for tokens, done in zip(written, finished, strict=True)]

    def _read(self, network: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[DynamicCache, Tensor, Tensor]:
        """Cache, mask (B, T) and the logits of the first new token (B, V). What several rows share is read once."""
        distinct = list(dict.fromkeys(prompts))
        batches = [list(range(len(distinct)))]
        if self.reading_padding is not None:  # no part exceeds the memory that suffices for the whole
            batches = by_length([len(prompt) for prompt in distinct], sys.maxsize, self.reading_padding)
        caches, logits = list[DynamicCache](), list[Tensor]()
        for batch in batches:
            ids, mask = self._padded([distinct[i] for i in batch])
            caches.append(DynamicCache(config=network.config.get_text_config()))
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits.append(_next_logits(network, ids, mask, positions, caches[-1]))
        place = {distinct[i]: row for row, i in enumerate(i for batch in batches for i in batch)}
        rows = torch.tensor([place[prompt] for prompt in prompts], device=self.device)
        _, mask = self._padded(prompts)
        return _joined(caches, rows), mask, torch.cat(logits)[rows]

    def _padded(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_left(prompts, self.language_model.pad_token)
        return ids.to(self.device), mask.to(self.device)


def _next_logits(network: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Logits (B, V) of the token that follows ``ids`` (B, T), which ``cache`` then holds too."""
    passed = network(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return passed.logits[:, -1].float()  # type: ignore[no-any-return]


def can_be_joined(cache: DynamicCache) -> bool:
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _joined(caches: Sequence[DynamicCache], rows: Tensor) -> DynamicCache:
    """One cache of the ``rows`` of all, counted through, in their order; the first is that of the longest texts.

    Shorter ones are padded on the left, as their masks are.
    """
    joined, in_order = caches[0], rows.tolist() == list(range(len(rows)))
    if len(caches) == 1 and in_order:
        return joined
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if layers[0].is_initialized:  # what shares another layer's keys has none of its own
            for name in ("keys", "values"):
                parts = [getattr(layer, name) for layer in layers]
                width = max(part.shape[-2] for part in parts)
                padded = [nn.functional.pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts]
                setattr(layers[0], name, torch.cat(padded) if in_order else torch.cat(padded)[rows])
                for layer in layers[1:]:
                    setattr(layer, name, None)
    return joined


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """One token for each row: logits (B, V) and uniform numbers (B,) in [0, 1) give (B,).

    Samples by inverting the cumulative distribution, so that one number per row and step decides.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token stays while the mass before it is short of top_p; the first always does.
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = probabilities.masked_fill(outside.scatter(-1, order, outside), 0.0)
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, uniform.double()[:, None] * total, right=True).squeeze(-1)
    # A number that rounds to 1 must not fall on a token of no probability behind the last possible one.
    return torch.minimum(drawn, (cumulative < total).sum(-1))
