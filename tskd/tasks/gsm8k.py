"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems whose answer is a number. MIT licence.

Files: ``gsm8k/{train,test}.jsonl``; on the hub: openai/gsm8k (main).
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

from tskd.errors import TaskError
from tskd.records import Prompt, Question
from tskd.tasks import Harness
from tskd.tasks.published import Group, Published
from tskd.tasks.sources import Row, Rows, hub_rows, json_lines, text_of

# What decides is upstream's: the same patterns are in harness/tskd_gsm8k.yaml.
NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
NEXT_QUESTION = "Question:"


@dataclass(frozen=True)
class Gsm8k(Published):
    """Private: the first ``num_private`` training problems (250 as in Trans-LoRA). Held out: the test set.

    With ``chain_of_thought``, answers are the published solutions, which end in ``#### N``, without the calculator's
    annotations; otherwise the number alone, as in Trans-LoRA.
    """

    name: ClassVar[str] = "gsm8k"
    note: ClassVar[str] = (
        "The splits are published ones: private are the first training problems, held out is the test set. The last "
        "number of a response decides (the harness's flexible-extract)."
    )

    num_private: PositiveInt | None = 250
    chain_of_thought: bool = True

    def is_correct(self, question: Question, response: str) -> bool:
        """Whether the last number in ``response``, before any next question, is that of the answer."""
        numbers = re.findall(NUMBER, response.split(NEXT_QUESTION)[0])
        return bool(numbers) and _bare("".join(numbers[-1])) == _bare(str(question.answer))

    def harness(self) -> Harness:
        return self._harness("exact_match", "flexible-extract")

    def _read(self) -> list[Group]:
        train, test = ([self._question(*row) for row in self._rows(split)] for split in ("train", "test"))
        return [Group("", train, test)]

    def _rows(self, split: str) -> Rows:
        if self.root is None:
            return hub_rows("openai/gsm8k", "main", split)
        return json_lines(self.root, f"gsm8k/{split}.jsonl")

    def _question(self, row: Row, where: str) -> Question:
        solution = re.sub(r"<<[^>]*>>", "", text_of(row, "answer", where))
        _, mark, number = solution.rpartition("\n#### ")
        if not mark:
            raise TaskError(f"{where}: `answer` does not end in a line `#### N`; take the file as it is published.")
        return Question(Prompt(text_of(row, "question", where)), solution if self.chain_of_thought else number)


def _bare(number: str) -> str:
    for pattern in IGNORED:
        number = re.sub(pattern, "", number)
    return number
