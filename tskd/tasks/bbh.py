"""BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks with short exact answers. MIT licence.

Files: ``bbh/<task>.json``; on the hub: SaylorTwift/bbh, which lm-evaluation-harness uses too.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from tskd.records import Prompt, Question
from tskd.tasks import Harness
from tskd.tasks.published import ALL, Group, PublishedSubsets, halves
from tskd.tasks.sources import Row, Rows, hub_rows, json_rows, text_of

TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
FIRST_LINE = r"^\s*(.*)"  # the same pattern is the filter in harness/tskd_bbh.yaml


@dataclass(frozen=True)
class Bbh(PublishedSubsets):
    """The tasks in ``subset``. BBH has no training split; here it is half of each task, by the prompts' SHA-256."""

    name: ClassVar[str] = "bbh"
    categories: ClassVar[dict[str, tuple[str, ...]]] = {ALL: TASKS}
    note: ClassVar[str] = (
        "BBH publishes no training split; this one is ours: of each task, the half of the prompts with the lower "
        "SHA-256 is private and the other is held out. A score is not that of the whole benchmark."
    )

    def is_correct(self, question: Question, response: str) -> bool:
        """Whether the first line of ``response`` is the answer, case and a final full stop left aside."""
        return _said(response) == _said(str(question.answer))

    def harness(self) -> Harness:
        return self._harness("exact_match")

    def _read(self) -> list[Group]:
        return [Group(task, *halves([_question(*row, task) for row in self._rows(task)])) for task in self.subsets]

    def _rows(self, task: str) -> Rows:
        if self.root is None:
            return hub_rows("SaylorTwift/bbh", task, "test")
        return json_rows(self.root, f"bbh/{task}.json", "examples")


def _question(row: Row, where: str, task: str) -> Question:
    return Question(Prompt(text_of(row, "input", where)), text_of(row, "target", where), group=task)


def _said(text: str) -> str:
    return "".join(re.findall(FIRST_LINE, text)[:1]).strip().removesuffix(".").lower()
