"""What an engine that generates text is asked, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import NonNegativeFloat, PositiveInt

from tskd.errors import ConfigError
from tskd.models.weights import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How to generate. ``temperature`` 0 is greedy; ``top_p`` keeps the smallest set of tokens of that mass."""

    max_new_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"`top_p` is {self.top_p}; it must be above 0 and at most 1.")


@dataclass(frozen=True, slots=True)
class Request:
    """The token ids that a model reads, and the key of what it then samples."""

    ids: tuple[int, ...]
    key: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """New text as it was written, without special tokens. ``finished``: it ended by itself, not at the limit."""

    text: str
    finished: bool
    tokens: int


@dataclass(frozen=True)
class Ending:
    """Where what ``model`` writes ends: with one of its end tokens, or where one of the texts ``stop`` is complete."""

    model: LanguageModel
    stop: tuple[str, ...] = ()

    @cached_property
    def tokens(self) -> frozenset[int]:
        return self.model.end_tokens

    def is_reached(self, written: Sequence[int]) -> bool:
        """Whether the last token of ``written`` is the end, the tokens before it being known not to be."""
        if written[-1] in self.tokens:
            return True
        if not self.stop:
            return False
        # A token is at least one byte, so a stop text lies within as many tokens as it has bytes.
        tail = self.model.tokenizer.decode(written[-max(len(text.encode()) for text in self.stop) - 1 :])
        return any(text in tail for text in self.stop)

    def cut(self, written: Sequence[int]) -> Generation:
        """What of ``written`` comes up to the end; an engine may have gone on."""
        for count in range(1, len(written) + 1):
            if self.is_reached(written[:count]):
                return self.generation(written[:count], finished=True)
        return self.generation(written, finished=False)

    def generation(self, written: Sequence[int], finished: bool) -> Generation:
        """``written``, of which the last token is the end where it is ``finished``."""
        text = self.model.tokenizer.decode(written, skip_special_tokens=True)
        return Generation(before_any(self.stop, text), finished, len(written))


def before_any(stop: Sequence[str], text: str) -> str:
    """``text`` up to where the first of the texts ``stop`` begins, if one does."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=None)]
