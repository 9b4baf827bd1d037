"""Continuous batching by transformers: a text that ends makes room for the next at once, in a paged cache."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm  # type: ignore[import-untyped]

from tskd.errors import ModelError, one_line
from tskd.models.generation import Ending, Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import interrupts

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig, GenerationConfig

PAGE = 64  # tokens; what the last page of a text does not use is lost
SPARE_PAGES = 16  # a model that mixes full and sliding attention divides the cache among them in coarse parts
MASKED_PASS = 1024  # tokens; all attention but flash computes a mask over all tokens of a pass, whosever they are


@dataclass(frozen=True)
class ContinuousBatching:
    """Transformers' continuous batching, on the weights that all stages share; the cache holds a batch's tokens.

    Greedy texts are those of our own loop, as far as the arithmetic goes. What is sampled follows from one seed for
    all requests of a call: the same call gives the same texts, but another request in it may change any of them. For
    the same reason a sampled text is written on after the stop text, and cut: a row that left when we asked for it
    would leave at another pass each time. In the journal a greedy text is noted as it ends, sampled ones all together.
    It computes in the model's own data type, whatever the trainer's precision.
    Of several processes the first does it all.
    """

    def check(self, models: Sequence[LanguageModel], rank: int) -> None:
        for model in models:
            attention = model.weights.checkpoint.attention
            if attention not in (None, "eager", "sdpa") and "flash" not in attention:
                raise ModelError(
                    f"Model {model.name!r} has attention {attention!r}, which continuous batching cannot page; "
                    f"set `attention` to eager, sdpa or flash_attention_2, or `engine=own`."
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
        """Raises ``ModelError`` where the library gives up, for want of memory or else."""
        import torch

        trainer.make_room(model.weights)
        if not model.weights.checkpoint.is_placed:
            model.weights.model.to(trainer.device)
        ending = Ending(model, stop)
        is_greedy = sampling.temperature == 0
        cancels = bool(stop) and is_greedy
        found, note = trainer.recall([self, model, repr(requests), sampling, stop])
        made = {i: Generation(*each) for i, each in found.items()}
        left = {i: request for i, request in enumerate(requests) if i not in made}
        if not left:
            return [made[i] for i in range(len(requests))]
        lengths = [len(request.ids) + sampling.max_new_tokens for request in left.values()]
        devices = [trainer.device] if trainer.device.type == "cuda" else []
        # It seeds torch's own generators, which other stages draw from.
        with model.speaking() as network, torch.random.fork_rng(devices):
            config = self._config(network, lengths, trainer, requests)
            try:
                manager = network.init_continuous_batching(_generation_config(ending, sampling), config)
            except ValueError as error:
                raise ModelError(f"Continuous batching with {model.name!r}: {one_line(error)}") from error
            # Before it starts: which requests share the first pass, and so what is sampled, must not depend on time.
            names = manager.add_requests(
                [list(request.ids) for request in left.values()],
                max_new_tokens=sampling.max_new_tokens,
                streaming=cancels,
            )
            index = dict(zip(names, left, strict=True))
            manager.start()
            try:
                with tqdm(
                    desc=label,
                    total=len(names),
                    unit=" texts",
                    leave=False,
                    dynamic_ncols=True,
                    disable=not trainer.shows_progress,
                ) as bar:
                    while len(made) < len(requests):
                        interrupts.check()
                        if (result := manager.get_result(timeout=1)) is None:
                            if not manager.is_running():
                                raise ModelError(_failure(model, "it ended early"))
                        elif result.error is not None:
                            raise ModelError(_failure(model, result.error))
                        elif (i := index[result.request_id]) not in made:
                            written = result.generated_tokens
                            if result.is_finished() or ending.is_reached(written):
                                made[i] = ending.cut(written)
                                if is_greedy:
                                    note({i: made[i]})
                                bar.update()
                                if not result.is_finished():
                                    manager.cancel_request(result.request_id)
            finally:
                manager.stop(hard_stop=True)
                manager.destroy()
        if not is_greedy:
            note(made)
        return [made[i] for i in range(len(requests))]

    def _config(
        self, network: Any, lengths: Sequence[int], trainer: LightningTrainer, requests: Sequence[Request]
    ) -> "ContinuousBatchingConfig":
        from transformers import ContinuousBatchingConfig

        pages = [math.ceil(length / PAGE) for length in lengths]
        has_flash = "flash" in network.config._attn_implementation
        keys = "\n".join(request.key for request in requests)
        return ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=SPARE_PAGES + max(max(pages), min(sum(pages), trainer.batch_tokens // PAGE)),
            max_batch_tokens=None if has_flash else MASKED_PASS,
            auto_switch_to_flash=False,  # a model's attention is its own setting, and scoring uses the same
            seed=int(hashlib.sha256(keys.encode()).hexdigest()[:15], 16),
        )


def _generation_config(ending: Ending, sampling: Sampling) -> "GenerationConfig":
    from transformers import GenerationConfig

    ends = {"eos_token_id": sorted(ending.tokens), "pad_token_id": ending.model.pad_token}
    if sampling.temperature == 0:
        return GenerationConfig(**ends, do_sample=False)
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}  # or it takes the 50 likeliest
    return GenerationConfig(**ends, do_sample=True, **chosen)


def _failure(model: LanguageModel, said: str) -> str:
    return (
        f"Continuous batching with {model.name!r} failed: {' '.join(said.split())[:300]}; "
        f"lower `trainer.max_batch_tokens`, or set `engine=own`."
    )
