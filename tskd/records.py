"""The data that flows: frozen plain values, each holding the record it came from.

    Prompt
      └ Response(prompt)
          └ Scored(response)
              └ Selection(kept, dropped)
                  └ Adapter
    Iteration: one pass through all of them

Perplexities derive from the mean nll, which is what is measured and does not overflow.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PRIVATE = "private"  # the split of held-out questions that only the teacher's fine-tuning answers
VOICES = ("base", "teacher", "target before", "target after")  # whose answers to them are graded


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked. ``context`` holds the turns before it; ``parents`` the ids of the prompts it was written from."""

    text: str
    context: tuple[Message, ...] = ()
    iteration: int = 0
    parents: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Twelve hex digits of what the prompt says, whoever wrote it and when."""
        said = [*(f"{turn.role}\n{turn.content}" for turn in self.context), self.text]
        return hashlib.sha256("\0".join(said).encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """A digest of its words, whatever case and white space: what it shares with a prompt that repeats it."""
        said = [" ".join(text.casefold().split()) for text in (*(turn.content for turn in self.context), self.text)]
        return hashlib.sha256("\0".join(said).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def is_seed(self) -> bool:
        return not self.parents


@dataclass(frozen=True, slots=True)
class Expansion:
    """New prompts, and what they cost: drafts written, those among them that are of no use, tokens generated.

    ``repeats`` tells of each prompt that was drafted again how often, by its fingerprint: ``duplicates`` in all.
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
    """New prompts that are worth an answer, and those that are not."""

    passed: tuple[Prompt, ...]
    screened: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """The teacher's answer. ``finished`` is false where the length limit cut it: such a text has no end token."""

    prompt: Prompt
    text: str
    finished: bool = True
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """A response with its mean nll under base and teacher, in nats per response token, end token included.

    ``token_excess``, where it was asked for, is log p(teacher) - log p(base) of each token in the teacher's tokenizer.
    """

    response: Response
    base_nll: float
    teacher_nll: float
    tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)
    token_excess: tuple[float, ...] = ()

    @property
    def base_ppl(self) -> float:
        return perplexity(self.base_nll)

    @property
    def teacher_ppl(self) -> float:
        return perplexity(self.teacher_nll)

    @property
    def gap(self) -> float:
        """Base perplexity minus teacher perplexity: large where the fine-tuning explains the answer."""
        return self.base_ppl - self.teacher_ppl


@dataclass(frozen=True, slots=True)
class Selection:
    """``threshold`` is the one that decided, where one number did."""

    kept: tuple[Scored, ...]
    dropped: tuple[Scored, ...]
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of the target; ``path`` is its PEFT folder, relative to the run's.

    It has a ``loss`` where it was trained; ``not_finite`` examples were left out, as theirs was no number.
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
    """One pass expand → train. ``scored`` has every prompt asked in it; iteration 0 asks the seeds too.

    ``screened`` are new prompts that were not asked.
    """

    index: int
    expansion: Expansion
    scored: tuple[Scored, ...]
    selection: Selection
    adapter: Adapter | None
    screened: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt. Without an ``answer``, the teacher's own is what the target is compared with.

    ``group`` names the part of a benchmark that it belongs to, so that a mean can give each part the same weight.
    """

    prompt: Prompt
    answer: str | None
    split: str = PRIVATE
    group: str = ""


@dataclass(frozen=True, slots=True)
class Graded:
    """One model's answer to a held-out question, which is named by its id: the question itself is nobody's business."""

    question: str
    response: str
    correct: bool
    split: str = PRIVATE
    group: str = ""


def perplexity(nll: float) -> float:
    """exp(nll), infinite where a float cannot hold it."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
