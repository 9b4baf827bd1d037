"""Models behind a server: one that writes new prompts, and those of the run that a server generates with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import InstanceOf, PositiveInt

from tskd.engines.client import Answer, Server
from tskd.engines.engine import Engine, check_engine
from tskd.errors import ConfigError
from tskd.models.generation import Generation, Request, Sampling, before_any
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import processes


@dataclass(frozen=True, kw_only=True)
class ServerEngine(Server):
    """Generates with a server that has some of a run's models: the base, the teacher, the target before it is tuned.

    ``models`` says what the server calls them: by the name of a checkpoint, or for one with an adapter by the path of
    the adapter, as they are in the configuration. All others are ``otherwise``'s: the target has a new adapter in each
    iteration, which no server has. Nothing can tell whether a server's model is the same as ours.
    """

    models: dict[str, str] = field(hash=False)
    otherwise: InstanceOf[Engine]
    key_variable: str | None = field(default=None, compare=False)
    concurrency: PositiveInt = field(default=32, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if processes.count() > 1:
            raise ConfigError(
                f"`engine=server` runs in one process, and there are {processes.count()}; set `engine=own`, or start "
                f"one."
            )

    def check(self, models: Sequence[LanguageModel] = (), rank: int = 0) -> None:
        """Raise ``ConfigError`` where ``models`` names none of the run's, ``ServerError`` where no server is there."""
        there = [_known_as(model) for model in models]
        if models and (unknown := [name for name in self.models if name not in there]):
            raise ConfigError(
                f"`engine.models` names {', '.join(unknown)}, and the run has {', '.join(dict.fromkeys(there))}; "
                f"use these, which are names of checkpoints and paths of adapters."
            )
        check_engine(self.otherwise, [model for model in models if _known_as(model) not in self.models], rank)
        super().check()

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
        """One generation for each request, in their order."""
        name = self.models.get(_known_as(model))
        if name is None:
            return self.otherwise.generate(model, requests, sampling, trainer, stop=stop, label=label)
        bodies = [
            {"model": name, "prompt": _readable(model, request.ids), **_settings(sampling, request.key, stop)}
            for request in requests
        ]
        keys = [request.key for request in requests]
        progress = trainer.shows_progress
        answers = self.ask("/completions", bodies, keys, what="Prompts", label=label, progress=progress)
        return [_generation(answer, stop) for answer in answers]


def _known_as(model: LanguageModel) -> str:
    return model.adapter or model.name


def _readable(model: LanguageModel, ids: tuple[int, ...]) -> str | list[int]:
    """The text that the model's tokenizer reads as ``ids``, or ``ids`` where there is none.

    Every server takes a text, and puts a start token before it where the tokenizer does; few take ids.
    """
    for start in (0, 1):
        text = model.tokenizer.decode(ids[start:])
        if tuple(model.tokenizer(text).input_ids) == ids:
            return str(text)
    return list(ids)


def _settings(sampling: Sampling, key: str, stop: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a request that say how to generate."""
    chosen: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1  # servers take 31 bits
        chosen |= {"top_p": sampling.top_p, "seed": seed}
    return {**chosen, "stop": list(stop)} if stop else chosen


def _generation(answer: Answer, stop: tuple[str, ...]) -> Generation:
    # Some servers leave the text that ended it in place.
    text = before_any(stop, answer.text)
    return Generation(text, answer.ended_by == "stop" or text != answer.text, answer.tokens)
