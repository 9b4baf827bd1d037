"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): questions with four choices in 57 subjects. MIT licence.

Files: ``mmlu/{dev,test}/<subject>_{dev,test}.csv``; on the hub: cais/mmlu.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from tskd.errors import TaskError
from tskd.records import Prompt, Question
from tskd.tasks import Harness
from tskd.tasks.published import ALL, Group, PublishedSubsets, halves
from tskd.tasks.sources import Row, Rows, csv_rows, hub_rows, text_of

CATEGORIES = {
    "stem": (
        "abstract_algebra",
        "anatomy",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ),
    "humanities": (
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ),
    "social_sciences": (
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ),
    "other": (
        "business_ethics",
        "clinical_knowledge",
        "college_medicine",
        "global_facts",
        "human_aging",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "professional_accounting",
        "professional_medicine",
        "virology",
    ),
}
SUBJECTS = tuple(sorted(subject for subjects in CATEGORIES.values() for subject in subjects))
LETTERS = "ABCD"
CHOICES = ("choice0", "choice1", "choice2", "choice3")


@dataclass(frozen=True)
class Mmlu(PublishedSubsets):
    """The subjects in ``subset``. MMLU publishes no training split by subject, so the test questions are divided.

    Private are the five ``dev`` questions of a subject, which come first, and half of its test questions, by the
    prompts' SHA-256.
    """

    name: ClassVar[str] = "mmlu"
    categories: ClassVar[dict[str, tuple[str, ...]]] = {ALL: SUBJECTS, **CATEGORIES}
    note: ClassVar[str] = (
        "MMLU publishes no training split by subject; this one is ours: of each subject, the dev questions and the "
        "half of the test questions with the lower SHA-256 are private, and the other half is held out. A score is not "
        "that of the whole test set."
    )

    def is_correct(self, question: Question, response: str) -> bool:
        """Whether the first A, B, C or D that stands alone in ``response`` is the answer.

        The harness does not read a response: it takes the letter that the model finds likeliest.
        """
        return re.findall(r"\b[A-D]\b", response)[:1] == [question.answer]

    def harness(self) -> Harness:
        return self._harness("acc")

    def _read(self) -> list[Group]:
        groups = []
        for subject in self.subsets:
            dev, test = ([_question(*row, subject) for row in self._rows(subject, split)] for split in ("dev", "test"))
            private, held_out = halves(test)
            groups.append(Group(subject, dev + private, held_out))
        return groups

    def _rows(self, subject: str, split: str) -> Rows:
        if self.root is None:
            rows = hub_rows("cais/mmlu", subject, split)
            return [
                ({**row, **dict(zip(CHOICES, row.get("choices") or (), strict=False))}, where) for row, where in rows
            ]
        return csv_rows(self.root, f"mmlu/{split}/{subject}_{split}.csv", ("question", *CHOICES, "answer"))


def _question(row: Row, where: str, subject: str) -> Question:
    index = str(row.get("answer"))
    if index not in ("0", "1", "2", "3"):
        raise TaskError(f"{where}: `answer` is {index}; it must be the index of a choice, 0 to 3.")
    choices = (f"{letter}. {text_of(row, choice, where)}" for letter, choice in zip(LETTERS, CHOICES, strict=True))
    prompt = "\n".join([text_of(row, "question", where), *choices])
    return Question(Prompt(prompt), LETTERS[int(index)], group=subject)
