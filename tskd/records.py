"""The data that flows: frozen plain values. Each record holds the record it came from.

    Prompt
      └ Response(prompt)
          └ Scored(response)
              └ Selection(kept, dropped)
                  └ Adapter
    Iteration: one pass through all of them

The mean negative log-likelihood (nll) is stored, because it does not overflow; perplexities derive from it.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PRIVATE = "private"  # the split of held-out questions that only the fine-tuning of the teacher answers
VOICES = ("base", "teacher", "target before", "target after")  # the models whose answers are graded


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt.

    Args:
        text: the last user turn.
        context: the turns before it.
        iteration: the iteration that wrote it; 0 for a seed.
        parents: ids of the prompts that it was written from; a seed has none.
    """

    text: str
    context: tuple[Message, ...] = ()
    iteration: int = 0
    parents: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Twelve hex digits of SHA-256 of the text and its context."""
        parts = [*(f"{turn.role}\n{turn.content}" for turn in self.context), self.text]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text and its context, ignoring case and whitespace. Duplicates share it."""
        parts = [" ".join(text.casefold().split()) for text in (*(turn.content for turn in self.context), self.text)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def is_seed(self) -> bool:
        """Whether the prompt was given, not written."""
        return not self.parents


@dataclass(frozen=True, slots=True)
class Expansion:
    """New prompts, and what they cost.

    Args:
        prompts: the new prompts, in the order in which they were drafted.
        drafts: how many drafts were written.
        duplicates: drafts that repeat a prompt seen before.
        malformed: drafts that hold no finished prompt.
        held_out: drafts that repeat a held-out question.
        tokens: tokens generated.
        near_duplicates: drafts that nearly repeat a prompt seen before.
        repeats: for the fingerprint of each repeated prompt, how often it was drafted again.
    """

    prompts: tuple[Prompt, ...]
    drafts: int = 0
    duplicates: int = 0
    malformed: int = 0
    held_out: int = 0
    tokens: int = 0
    near_duplicates: int = 0
    repeats: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Screening:
    """New prompts: those that pass the screen, and those that do not."""

    passed: tuple[Prompt, ...]
    screened: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """The answer of the teacher to a prompt.

    Args:
        prompt: the prompt.
        text: the answer, without surrounding whitespace.
        finished: False if the length limit cut the text, which then has no end token.
        tokens: tokens generated.
    """

    prompt: Prompt
    text: str
    finished: bool = True
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """A response with its nll under base and teacher.

    Args:
        response: the response.
        base_nll: mean nll under the base, in nats per response token, end token included.
        teacher_nll: the same under the teacher.
        tokens: response tokens scored.
        measures: further measures, by name (``tskd.modules.scorer``).
        token_excess: log p(teacher) - log p(base) of each token, if a rule or an objective asked for it.
    """

    response: Response
    base_nll: float
    teacher_nll: float
    tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)
    token_excess: tuple[float, ...] = ()

    @property
    def base_ppl(self) -> float:
        """Perplexity under the base."""
        return perplexity(self.base_nll)

    @property
    def teacher_ppl(self) -> float:
        """Perplexity under the teacher."""
        return perplexity(self.teacher_nll)

    @property
    def gap(self) -> float:
        """Base perplexity minus teacher perplexity: large if the fine-tuning explains the answer."""
        return self.base_ppl - self.teacher_ppl


@dataclass(frozen=True, slots=True)
class Selection:
    """Kept and dropped responses, in the order given; ``threshold`` is set if one number decided."""

    kept: tuple[Scored, ...]
    dropped: tuple[Scored, ...]
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of the target.

    Args:
        path: its PEFT folder, relative to the folder of the run.
        target: the name of the target.
        num_examples: examples in the corpus.
        loss: mean nll of the last epoch, in nats per response token; None if nothing was trained.
        trained_tokens: response tokens trained on, over all epochs.
        generated_tokens: tokens generated for replay.
        not_finite: examples left out because their loss was not finite.
    """

    path: str
    target: str
    num_examples: int
    loss: float | None
    trained_tokens: int = 0
    generated_tokens: int = 0
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Iteration:
    """One pass from expand to train.

    Args:
        index: its number, from 0.
        expansion: the new prompts.
        scored: every response of this iteration; iteration 0 answers the seeds too.
        selection: which of them were kept.
        adapter: the adapter trained on everything kept so far, if this iteration has one.
        screened: new prompts that the screen left unanswered.
    """

    index: int
    expansion: Expansion
    scored: tuple[Scored, ...]
    selection: Selection
    adapter: Adapter | None
    screened: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question.

    Args:
        prompt: the question.
        answer: the right answer; if it is None, the answer of the teacher takes its place.
        split: the split that its accuracy is reported under.
        group: the subset of a benchmark that it belongs to; a mean gives each subset the same weight.
    """

    prompt: Prompt
    answer: str | None
    split: str = PRIVATE
    group: str = ""


@dataclass(frozen=True, slots=True)
class Graded:
    """The graded answer of one model to a held-out question. ``question`` is its id: the text stays private."""

    question: str
    response: str
    correct: bool
    split: str = PRIVATE
    group: str = ""


def perplexity(nll: float) -> float:
    """Return exp(nll), or infinity if a float cannot hold it."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
