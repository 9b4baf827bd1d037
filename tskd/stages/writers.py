"""Who writes new prompts: one of the models of a run, another one, or a class of your own named by ``_target_``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tskd.engines.client import Server
from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop, generate
from tskd.engines.server import _generation, _settings
from tskd.models.encoding import check_context, encode_prefix
from tskd.models.generation import Generation, Request, Sampling
from tskd.models.templates import Asked, Requests, Template
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer


class Writer(Protocol):
    """Goes on from texts. A frozen dataclass, whose fields and code tell its results from another's in the cache."""

    @property
    def name(self) -> str:
        """What a report calls it."""

    @property
    def template(self) -> Requests:
        """How it is asked for a prompt."""

    def write(
        self, texts: Sequence[str], keys: Sequence[str], sampling: Sampling, *, stop: tuple[str, ...], label: str
    ) -> list[Generation]:
        """What it writes after each text, up to ``stop``; a text's key decides what is sampled, as far as it can."""

    def check_length(self, text: str, new_tokens: int, what: str) -> None:
        """Raise ``ModelError``, which says ``what`` is too long, where it cannot read ``text`` and write so much."""


@dataclass(frozen=True)
class LocalWriter:
    """A model on this machine."""

    model: LanguageModel
    trainer: LightningTrainer
    engine: Engine = OwnLoop()

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def template(self) -> Template:
        return self.model.template

    def write(
        self, texts: Sequence[str], keys: Sequence[str], sampling: Sampling, *, stop: tuple[str, ...], label: str
    ) -> list[Generation]:
        requests = [Request(encode_prefix(self.model, text), key) for text, key in zip(texts, keys, strict=True)]
        return generate(self.model, requests, sampling, self.trainer, self.engine, stop=stop, label=label)

    def check_length(self, text: str, new_tokens: int, what: str) -> None:
        check_context(self.model, len(encode_prefix(self.model, text)) + new_tokens, what)


@dataclass(frozen=True, kw_only=True)
class ServerWriter(Server):
    """A chat model that is asked for new prompts: by the paper's reviews, GPT-4o."""

    model: str
    answers: Path | None = field(default=Path("outputs/.server"), compare=False)

    @property
    def name(self) -> str:
        return self.model

    @property
    def template(self) -> Asked:
        return Asked()

    def write(
        self, texts: Sequence[str], keys: Sequence[str], sampling: Sampling, *, stop: tuple[str, ...], label: str
    ) -> list[Generation]:
        """Its answer to each text, up to ``stop``; a key gives the seed, which a server may heed or not."""
        bodies = [
            {"model": self.model, "messages": [{"role": "user", "content": text}], **_settings(sampling, key, stop)}
            for text, key in zip(texts, keys, strict=True)
        ]
        answers = self.ask("/chat/completions", bodies, keys, what="Seeds and kept prompts", label=label, progress=None)
        return [_generation(answer, stop) for answer in answers]

    def check_length(self, text: str, new_tokens: int, what: str) -> None:
        """What fits, only the server knows; before the run, it is asked whether it is there at all."""
        self.check()
