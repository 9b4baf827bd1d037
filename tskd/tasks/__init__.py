"""Tasks: the seeds that the algorithm is given, and the held-out questions that it never sees.

A task is any object with the methods of ``Task``; a ``Benchmark`` also has what a teacher can be fine-tuned on, and the
field's own harness can ask it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from tskd.records import Prompt, Question


class Task(Protocol):
    """``drops_held_out``: whether a synthetic prompt that equals a held-out question must not be learnt from."""

    drops_held_out: ClassVar[bool]

    def seed_prompts(self) -> list[Prompt]:
        """The representative prompts, without answers."""

    def questions(self) -> list[Question]:
        """Questions for accuracy only, in splits: private, and any others (what the target should not forget)."""

    def is_correct(self, question: Question, response: str) -> bool:
        """Whether ``response`` is the question's answer."""

    def is_private(self, prompt: Prompt) -> bool | None:
        """Whether the fine-tuning taught the answer to this prompt; ``None`` where that is not known."""


@dataclass(frozen=True)
class Harness:
    """How lm-evaluation-harness asks a benchmark's held-out questions.

    ``name`` is a task of ``tskd/tasks/lm_eval_tasks``, and ``metadata``, which is plain JSON, makes it ask the very
    same questions in the same order. ``metric`` after ``filter`` tells whether an answer is correct.
    """

    name: str
    metric: str
    filter: str
    metadata: Mapping[str, Any]
    num_fewshot: int = 0
    runs_code: bool = False


@runtime_checkable
class WithPrivate(Task, Protocol):
    """A task that can have the private data: what the teacher was, or can be, fine-tuned on."""

    @property
    def label(self) -> str:
        """A short name that can be part of a folder's."""

    def examples(self) -> list[Question]:
        """The private split with its answers; no held-out question is in it where ``drops_held_out``.

        Empty where the data is not there; ``None`` is the answer where it has prompts alone.
        """


@runtime_checkable
class Benchmark(WithPrivate, Protocol):
    """``note`` says which of its splits are published and which are ours: for a report to print beside a number."""

    note: ClassVar[str]

    def harness(self) -> Harness:
        """How to have the held-out questions asked by lm-evaluation-harness."""


def same_answer(answer: str, response: str) -> bool:
    """Whether two answers are the same words, whatever the case, the white space and a final full stop."""

    def words(text: str) -> str:
        return " ".join(text.casefold().split()).removesuffix(".")

    return words(answer) == words(response)


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without their repeats, in the order given."""
    return list({prompt.id: prompt for prompt in prompts}.values())
