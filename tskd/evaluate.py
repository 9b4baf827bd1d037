"""Accuracy of base, teacher, target and tuned target on held-out questions, and what the target gained.

An evaluator is called on a model and gives each question's answer, graded; its ``questions`` say what it asks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, stdev
from typing import Protocol

from tskd.models import LanguageModel
from tskd.modules.batches import check_context, encode_prefix
from tskd.modules.trainer import LightningTrainer
from tskd.records import PRIVATE, Graded, Question
from tskd.stages.answer import Answer
from tskd.tasks import Task


class Evaluator(Protocol):
    @property
    def questions(self) -> Sequence[Question]: ...

    def __call__(self, model: LanguageModel) -> list[Graded]:
        """One graded answer for each question, in the order of the questions."""

    def answered_by(self, teacher: LanguageModel) -> "Evaluator":
        """The same questions, those without an answer compared with the teacher's."""

    def check_lengths(self, model: LanguageModel) -> int:
        """The tokens of the longest question and its answer. Raises ``ModelError`` where the model has no room."""


@dataclass(frozen=True)
class Accuracy:
    """Which questions of one split were answered right, and the group of each (a benchmark's subset)."""

    correct: tuple[bool, ...]
    groups: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The mean over groups of the mean in each, as benchmarks with subsets are reported; nan without questions."""
        return fmean(map(fmean, self._by_group)) if self.correct else math.nan

    @property
    def standard_error(self) -> float:
        """Of ``value``, for questions drawn at random in each group; nan where a group has fewer than two."""
        groups = self._by_group
        if any(len(group) < 2 for group in groups) or not groups:
            return math.nan
        return math.sqrt(sum(stdev(group) ** 2 / len(group) for group in groups)) / len(groups)

    @property
    def _by_group(self) -> list[list[float]]:
        if not self.groups:
            return [[float(right) for right in self.correct]] if self.correct else []
        pairs = sorted(zip(self.groups, self.correct, strict=True))
        return [[float(right) for _, right in pairs] for _, pairs in groupby(pairs, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class ExactMatch:
    """Greedy answers to ``questions``, graded by the task. Those without an answer are compared with the teacher's."""

    task: Task
    questions: Sequence[Question]
    trainer: LightningTrainer
    max_new_tokens: int

    def __call__(self, model: LanguageModel) -> list[Graded]:
        return [
            Graded(q.prompt.id, response, self.task.is_correct(q, response), q.split, q.group)
            for q, response in zip(self.questions, self._responses(model), strict=True)
        ]

    def answered_by(self, teacher: LanguageModel) -> "ExactMatch":
        """The same questions, the missing answers filled in with the teacher's."""
        if all(question.answer is not None for question in self.questions):
            return self
        filled = [
            question if question.answer is not None else replace(question, answer=response)
            for question, response in zip(self.questions, self._responses(teacher), strict=True)
        ]
        return replace(self, questions=filled)

    def check_lengths(self, model: LanguageModel) -> int:
        prefixes = (model.template.prefix(question.prompt) for question in self.questions)
        longest = max((len(encode_prefix(model, prefix)) for prefix in prefixes), default=1) + self.max_new_tokens
        check_context(model, longest, f"The longest held-out question, with {self.max_new_tokens} new tokens,")
        return longest

    def _responses(self, model: LanguageModel) -> list[str]:
        answer = Answer(model, self.trainer, seed=0, max_new_tokens=self.max_new_tokens)
        return [response.text for response in answer([question.prompt for question in self.questions])]


def by_split(graded: Sequence[Graded]) -> dict[str, Accuracy]:
    """The accuracy in each split, in the order in which the splits first come."""
    splits = dict.fromkeys(answer.split for answer in graded)
    return {
        split: Accuracy(
            tuple(answer.correct for answer in graded if answer.split == split),
            tuple(answer.group for answer in graded if answer.split == split),
        )
        for split in splits
    }


def recovered_gain(before: Accuracy, teacher: Accuracy, after: Accuracy) -> float | None:
    """(after − before) / (teacher − before), or ``None`` where the teacher's lead is within two standard errors.

    The standard error is the paired one: of the mean of the differences on the same questions.
    """
    lead = [float(t) - float(b) for t, b in zip(teacher.correct, before.correct, strict=True)]
    if len(lead) < 2 or fmean(lead) <= 2 * stdev(lead) / math.sqrt(len(lead)):
        return None
    denominator = teacher.value - before.value
    return (after.value - before.value) / denominator if denominator > 0 else None


def mean_accuracy(results: Mapping[str, Accuracy], split: str = PRIVATE) -> float | None:
    return results[split].value if split in results else None
