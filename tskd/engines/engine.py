"""What an engine is: all that a new one has to know."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tskd.models.weights import LanguageModel
from tskd.storage.fingerprint import cache_key

if TYPE_CHECKING:
    from tskd.modules.trainer import LightningTrainer  # which has an engine
from tskd.models.generation import Generation, Request, Sampling


class Engine(Protocol):
    """Generates with a model as it is at that moment: its weights, and the adapter that speaks."""

    def generate(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        sampling: Sampling,
        trainer: "LightningTrainer",
        *,
        stop: tuple[str, ...],
        label: str,
    ) -> list[Generation]:
        """One generation for each of at least one request, in their order; all are known to fit the context."""
        ...


def noted(
    trainer: "LightningTrainer", content: Any
) -> tuple[dict[int, Generation], Callable[[Mapping[int, Generation]], None]]:
    """What the trainer's journal has of the call that ``content`` decides, by request, and what notes more of it."""
    if trainer.journal is None:
        return {}, lambda _: None
    key = cache_key(content)
    return {i: Generation(*each) for i, each in trainer.journal.read(key).items()}, partial(trainer.journal.add, key)
