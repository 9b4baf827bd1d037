"""Text from a language model: batches by length, a key-value cache, and randomness that belongs to the request.

Each request brings a key, from which its own stream of random numbers follows. What is sampled therefore depends on
neither the batch that a request lands in nor on what was generated before it, so batching and resuming change nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tskd.errors import ConfigError
from tskd.models import LanguageModel
from tskd.modules import workers
from tskd.modules.batches import by_length, check_context, pad_left
from tskd.modules.engine import Ending
from tskd.modules.engine import Engine as Engine  # callers find all four here
from tskd.modules.engine import Generation as Generation
from tskd.modules.engine import Request as Request
from tskd.modules.engine import Sampling as Sampling
from tskd.modules.trainer import LightningTrainer, Resident


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
    ) -> None:
        super().__init__(model.weights)
        self.language_model = model
        self.merge_adapter = merge_adapter
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
        """What is read by several requests is read once. Finished rows leave the batch once they are half of it."""
        streams = [random.Random(request.key) for request in requests]
        written: list[list[int]] = [[] for _ in requests]
        finished = [False] * len(requests)
        cache = DynamicCache(config=network.config.get_text_config())
        active = list(range(len(requests)))  # the rows of the batch that are still in the cache

        read = {request.ids: place for place, request in enumerate({r.ids: r for r in requests}.values())}
        ids, mask = (part.to(self.device) for part in pad_left(list(read), self.language_model.pad_token))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        shared = torch.tensor([read[request.ids] for request in requests], device=self.device)

        for _ in range(self.sampling.max_new_tokens):
            logits = (
                network(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                .logits[:, -1]
                .float()
            )  # (rows, V)
            if len(logits) < len(active):  # what was read is handed to each row
                cache.batch_select_indices(shared)
                logits, mask, positions = logits[shared], mask[shared], positions[shared]
            uniform = torch.tensor([streams[row].random() for row in active], dtype=torch.float64).to(ids.device)
            chosen = choose(logits, uniform, self.sampling)
            for row, token in zip(active, chosen.tolist(), strict=True):
                if not finished[row]:
                    written[row].append(token)
                    finished[row] = self.ending.is_reached(written[row])
            going = [place for place, row in enumerate(active) if not finished[row]]
            if not self.anyone(bool(going)):
                break
            going = going or [0]  # the other processes need this one in each pass; what it writes now is not kept
            if len(going) <= len(active) // 2:
                places = torch.tensor(going, device=ids.device)
                cache.batch_select_indices(places)
                chosen, mask, positions = chosen[places], mask[places], positions[places]
                active = [active[place] for place in going]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [self.ending.generation(tokens, done) for tokens, done in zip(written, finished, strict=True)]


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


@dataclass(frozen=True)
class OwnLoop:
    """The engine of this file. It alone shares its requests out among several processes.

    ``merge_adapter``: the adapter speaks from a copy of the weights that it has been added to, which takes the memory
    of a second model. In bf16 its texts are others, about as near to those of exact arithmetic.
    """

    merge_adapter: bool = False

    def identity(self) -> Any:
        return {"class": "tskd.modules.generator.OwnLoop", "merge_adapter": True} if self.merge_adapter else None

    def check(self, models: Sequence[LanguageModel], rank: int) -> None:
        for model in models:
            if self.merge_adapter and model.weights.checkpoint.is_placed:
                raise ConfigError(
                    f"`engine.merge_adapter` cannot copy {model.name!r}, which is quantised or has a `device_map`; "
                    f"set one or the other."
                )

    def generate(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        sampling: Sampling,
        trainer: LightningTrainer,
        *,
        stop: tuple[str, ...],
        label: str,
    ) -> list[Generation]:
        trainer.make_room(model.weights)
        lengths = [len(request.ids) + sampling.max_new_tokens for request in requests]
        # Requests that read the same come into the same batch, where they read it together.
        order = sorted(range(len(requests)), key=lambda i: requests[i].ids)
        # A batch more costs a pass for each of its tokens; many texts end before the last.
        max_padding = trainer.pass_cost(model.weights) * (1 + sampling.max_new_tokens // 2)
        batches = by_length([lengths[i] for i in order], trainer.batch_tokens, max_padding)
        batches = [[order[i] for i in batch] for batch in batches]
        generator = Generator(model, requests, sampling, stop, label, self.merge_adapter)
        results = trainer.predict(generator, batches)
        return [results[i] for i in range(len(requests))]


@workers.everywhere()
def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    sampling: Sampling,
    trainer: LightningTrainer,
    *,
    stop: tuple[str, ...] = (),
    label: str = "generate",
) -> list[Generation]:
    """One generation for each request, in the order given, by the trainer's engine.

    Raises ``ModelError`` where a request exceeds the context.
    """
    if not requests:
        return []
    longest = max(len(request.ids) for request in requests) + sampling.max_new_tokens
    check_context(model, longest, f"The longest request, with {sampling.max_new_tokens} new tokens,")
    engine = trainer.engine or OwnLoop()
    if workers.rank() > 0 and not isinstance(engine, OwnLoop):
        return []  # the first process does it alone
    return engine.generate(model, requests, sampling, trainer, stop=stop, label=label)
