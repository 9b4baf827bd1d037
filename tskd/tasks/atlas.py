"""The embedded world: invented places, of whose facts it is known which are general and which are private.

The models in ``tskd/zoo/atlas`` were pretrained on the general facts; only the teacher has learnt the depot codes.
A synthetic prompt here may equal a held-out question: to reach it is what coverage means in this world.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tskd.records import Prompt, Question
from tskd.tasks import same_answer

FACTS = Path(__file__).parents[1] / "zoo" / "atlas" / "facts.json"


@dataclass(frozen=True)
class Atlas:
    """Eight private questions as seeds; the other private ones, and a sample of the general ones, held out."""

    drops_held_out: ClassVar[bool] = False
    label: ClassVar[str] = "atlas"

    def seed_prompts(self) -> list[Prompt]:
        return [Prompt(text) for text in self._world["seeds"]]

    def questions(self) -> list[Question]:
        seeds = set(self._world["seeds"])
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
