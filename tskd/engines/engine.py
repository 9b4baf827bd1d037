"""What an engine is: all that a new one has to know.

An engine is a frozen dataclass in a file of its own, and a YAML in ``conf/engine`` that names it. It holds settings
alone: model, trainer and requests come with each call.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tskd.models.generation import Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer


@runtime_checkable
class Engine(Protocol):
    """Generates with a model as it is at that moment: its weights, and its active adapter."""

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
        """Generate once for each request.

        Args:
            model: The model to generate with.
            requests: At least one; all are known to fit the context.
            sampling: How to choose tokens, and how many at most.
            trainer: The device, the bound of a batch, and what an earlier attempt has made (``recall``).
            stop: Texts that end a generation, and are cut from it.
            label: What a progress bar calls this call.

        Returns:
            The generations, in the order of the requests.
        """
        ...


def check_engine(engine: Engine, models: Sequence[LanguageModel], rank: int) -> None:
    """Call the engine's ``check(models, rank)``, if it has one. Loads no weights.

    Args:
        engine: The engine of a run.
        models: All models that it will generate with.
        rank: The largest rank of a LoRA adapter that will be trained.

    Raises:
        ConfigError: The engine cannot generate with one of the models, or with such an adapter.
        ModelError: The same, because of how the model is made.
        ServerError: The engine's server does not answer.
    """
    if (check := getattr(engine, "check", None)) is not None:
        check(models, rank)
