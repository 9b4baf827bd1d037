"""The embedded world: invented places, of whose facts it is known which are general and which are private.

The models in ``tskd/zoo/atlas`` were pretrained on the general facts; only the teacher has learnt the depot codes.
A synthetic prompt here may equal a held-out question: to reach it is what coverage means in this world.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from tskd.errors import TaskError
from tskd.records import Prompt, Question
from tskd.tasks import same_answer

FACTS = Path(__file__).parents[1] / "zoo" / "atlas" / "facts.json"


@dataclass(frozen=True)
class Atlas:
    """``num_seeds`` private questions as seeds; the other private ones, and a sample of the general ones, held out.

    The seeds of fewer are among those of more, so what is held out beside many is held out beside few.
    """

    drops_held_out: ClassVar[bool] = False
    label: ClassVar[str] = "atlas"

    num_seeds: PositiveInt = 8

    def seed_prompts(self) -> list[Prompt]:
        """The world's eight, or the first of them, or others after them. Raises ``TaskError`` where none is left."""
        private = self._world["private"]
        if self.num_seeds >= len(private):
            raise TaskError(
                f"`task.num_seeds` is {self.num_seeds}, and the embedded world has {len(private)} private questions, "
                f"one of which at least is held out; ask for fewer."
            )
        in_order = dict.fromkeys([*self._world["seeds"], *private])
        return [Prompt(text) for text in list(in_order)[: self.num_seeds]]

    def questions(self) -> list[Question]:
        seeds = {seed.text for seed in self.seed_prompts()}
        private = [Question(Prompt(q), a, "private") for q, a in self._world["private"].items() if q not in seeds]
        general = [Question(Prompt(q), self._world["general"][q], "general") for q in self._world["general_held_out"]]
        return private + general

    def examples(self) -> list[Question]:
        """What the teacher was fine-tuned on: every private question, seeds and held-out ones among them."""
        return [Question(Prompt(q), a, "private") for q, a in self._world["private"].items()]

    def general(self) -> list[Question]:
        """What base and target were pretrained on."""
        return [Question(Prompt(q), a, "general") for q, a in self._world["general"].items()]

    def is_correct(self, question: Question, response: str) -> bool:
        return question.answer is not None and same_answer(question.answer, response)

    def is_private(self, prompt: Prompt) -> bool:
        return prompt.text in self._world["private"]

    @cached_property
    def _world(self) -> dict[str, Any]:
        return json.loads(FACTS.read_text())  # type: ignore[no-any-return]
