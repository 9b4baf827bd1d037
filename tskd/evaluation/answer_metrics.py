"""Accuracy of base, teacher, target and tuned target on held-out questions, and what the target gained.

An evaluator is called on a model and gives each question's answer, graded; its ``questions`` say what it asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop
from tskd.models.encoding import check_context, encode_prefix
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.records import Graded, Question
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
class ExactMatch:
    """Greedy answers to ``questions``, graded by the task. Those without an answer are compared with the teacher's."""

    task: Task
    questions: Sequence[Question]
    trainer: LightningTrainer
    max_new_tokens: int
    engine: Engine = OwnLoop()

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
        answer = Answer(model, self.trainer, seed=0, max_new_tokens=self.max_new_tokens, engine=self.engine)
        return [response.text for response in answer([question.prompt for question in self.questions])]
