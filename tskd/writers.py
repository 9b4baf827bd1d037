"""Who writes new prompts: one of the models of a run, another one, or a class of your own named by ``_target_``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tskd.models import LanguageModel
from tskd.modules.batches import check_context, encode_prefix
from tskd.modules.generator import Generation, Request, Sampling, generate
from tskd.modules.trainer import LightningTrainer
from tskd.templates import Requests, Template


class Writer(Protocol):
    """Goes on from texts. A frozen dataclass, whose fields are what tells its results from another's in the store."""

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
        return generate(self.model, requests, sampling, self.trainer, stop=stop, label=label)

    def check_length(self, text: str, new_tokens: int, what: str) -> None:
        check_context(self.model, len(encode_prefix(self.model, text)) + new_tokens, what)
