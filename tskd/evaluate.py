"""Accuracy of base, teacher, target and tuned target on held-out questions, which the algorithm never sees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from tskd.models import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.records import Question
from tskd.stages.answer import Answer
from tskd.tasks import Task

PRIVATE = "private"


@dataclass(frozen=True)
class Accuracy:
    """Which questions of one split were answered right, in the order of the split."""

    correct: tuple[bool, ...]

    @property
    def value(self) -> float:
        return fmean(self.correct) if self.correct else math.nan


@dataclass(frozen=True)
class Evaluator:
    """Greedy answers to ``questions``. Those without an answer are compared with the teacher's own (agreement)."""

    task: Task
    questions: Sequence[Question]
    trainer: LightningTrainer
    max_new_tokens: int

    def __call__(self, model: LanguageModel) -> dict[str, Accuracy]:
        """Accuracy for each split."""
        responses = self._responses(model)
        splits: dict[str, list[bool]] = {}
        for question, response in zip(self.questions, responses, strict=True):
            splits.setdefault(question.split, []).append(self.task.is_correct(question, response))
        return {split: Accuracy(tuple(correct)) for split, correct in splits.items()}

    def answered_by(self, teacher: LanguageModel) -> "Evaluator":
        """The same questions, the missing answers filled in with the teacher's."""
        if all(question.answer is not None for question in self.questions):
            return self
        filled = [
            question if question.answer is not None else replace(question, answer=response)
            for question, response in zip(self.questions, self._responses(teacher), strict=True)
        ]
        return replace(self, questions=filled)

    def _responses(self, model: LanguageModel) -> list[str]:
        answer = Answer(model, self.trainer, seed=0, max_new_tokens=self.max_new_tokens)
        return [response.text for response in answer([question.prompt for question in self.questions])]


def recovered_gain(before: Accuracy, teacher: Accuracy, after: Accuracy) -> float | None:
    """(after − before) / (teacher − before), or ``None`` where the teacher's lead is within two standard errors.

    The standard error is the paired one: of the mean of the differences on the same questions.
    """
    lead = [float(t) - float(b) for t, b in zip(teacher.correct, before.correct, strict=True)]
    if len(lead) < 2 or fmean(lead) <= 2 * stdev(lead) / math.sqrt(len(lead)):
        return None
    return (after.value - before.value) / fmean(lead)


def mean_accuracy(results: Mapping[str, Accuracy], split: str = PRIVATE) -> float | None:
    return results[split].value if split in results else None
