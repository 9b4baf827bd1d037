"""The engine of tskd's own loop, and ``generate``, which calls whichever engine it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tskd.engines.engine import Engine
from tskd.errors import ConfigError
from tskd.models.encoding import check_context
from tskd.models.generation import Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import processes


@dataclass(frozen=True)
class OwnLoop:
    """The engine of this file. It alone shares its requests out among several processes.

    ``merge_adapter``: the adapter speaks from a copy of the weights that it has been added to, which takes the memory
    of a second model. In bf16 its texts are others, about as near to those of exact arithmetic.
    """

    merge_adapter: bool = False

    def key_content(self) -> Any:
        return {"class": "tskd.engines.own.OwnLoop", "merge_adapter": True} if self.merge_adapter else None

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
        from transformers import DynamicCache

        from tskd.modules.batches import by_length
        from tskd.modules.generator import READINGS_OF_A_PLACE, Generator, can_be_joined

        trainer.make_room(model.weights)
        lengths = [len(request.ids) + sampling.max_new_tokens for request in requests]
        # Requests that read the same come into the same batch, where they read it together.
        order = sorted(range(len(requests)), key=lambda i: requests[i].ids)
        weights = model.weights
        pass_cost = trainer.pass_cost(weights)
        cache = DynamicCache(config=weights.config.get_text_config())
        apart = can_be_joined(cache) and not weights.checkpoint.sharded
        if apart:
            max_padding = max(pass_cost, weights.size.weights // (READINGS_OF_A_PLACE * weights.size.cache))
        else:  # A batch more costs a pass for each of its tokens; many texts end before the last.
            max_padding = pass_cost * (1 + sampling.max_new_tokens // 2)
        batches = by_length([lengths[i] for i in order], trainer.batch_tokens, max_padding)
        batches = [[order[i] for i in batch] for batch in batches]
        reading_padding = pass_cost if apart else None
        generator = Generator(model, requests, sampling, stop, label, self.merge_adapter, reading_padding)
        results = trainer.predict(generator, batches)
        return [results[i] for i in range(len(requests))]


@processes.on_all_ranks()
def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    sampling: Sampling,
    trainer: LightningTrainer,
    engine: Engine = OwnLoop(),
    *,
    stop: tuple[str, ...] = (),
    label: str = "generate",
) -> list[Generation]:
    """Generate once for each request, with ``engine``.

    Args:
        model: The model to generate with.
        requests: What it reads, and the keys of what it samples.
        sampling: How to choose tokens, and how many at most.
        trainer: The device, the bound of a batch, and what an earlier attempt has made.
        engine: What generates. Unless it is our own loop, it generates in the first process alone.
        stop: Texts that end a generation, and are cut from it.
        label: What a progress bar calls this call.

    Returns:
        The generations, in the order of the requests.

    Raises:
        ModelError: A request, with its new tokens, exceeds the context.
    """
    if not requests:
        return []
    longest = max(len(request.ids) for request in requests) + sampling.max_new_tokens
    check_context(model, longest, f"The longest request, with {sampling.max_new_tokens} new tokens,")
    if processes.rank() > 0 and not isinstance(engine, OwnLoop):
        return []
    return engine.generate(model, requests, sampling, trainer, stop=stop, label=label)
