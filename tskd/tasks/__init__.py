"""Tasks: the seeds that the algorithm is given, and the held-out questions that it never sees.

A task is any object with these four methods; ``is_private`` answers ``None`` where the truth is not known.
"""

from collections.abc import Sequence
from typing import Protocol

from tskd.records import Prompt, Question


class Task(Protocol):
    def seed_prompts(self) -> list[Prompt]:
        """The representative prompts, without answers."""

    def questions(self) -> list[Question]:
        """Questions for accuracy only, in splits: private, and any others (what the target should not forget)."""

    def is_correct(self, question: Question, response: str) -> bool:
        """Whether ``response`` is the question's answer."""

    def is_private(self, prompt: Prompt) -> bool | None:
        """Whether the fine-tuning taught the answer to this prompt, where that is known."""


def same_answer(answer: str, response: str) -> bool:
    """Whether two answers are the same words, whatever the case, the white space and a final full stop."""

    def words(text: str) -> str:
        return " ".join(text.casefold().split()).removesuffix(".")

    return words(answer) == words(response)


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without their repeats, in the order given."""
    return list({prompt.id: prompt for prompt in prompts}.values())
