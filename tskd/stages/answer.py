"""2. Answer: the teacher responds to each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop, generate
from tskd.errors import ConfigError
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Question, Response


@dataclass(frozen=True)
class Answer:
    """Greedy by default: what the teacher holds most likely. The paper's sampling settings are not published."""

    teacher: LanguageModel
    trainer: LightningTrainer
    seed: int
    max_new_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    engine: Engine = OwnLoop()

    def __call__(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One response for each prompt, in the order given; one that the limit cut is marked unfinished."""
        requests = [
            Request(
                encode_prefix(self.teacher, self.teacher.template.prefix(prompt)), f"{self.seed}/answer/{prompt.id}"
            )
            for prompt in prompts
        ]
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        answers = generate(self.teacher, requests, sampling, self.trainer, self.engine, label="answer")
        return [
            Response(prompt, answer.text.strip(), answer.finished, answer.tokens)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


@dataclass(frozen=True)
class Gold:
    """The private split's own answers in the place of the teacher's: the upper bound, training on the original data."""

    private: Sequence[Question]

    def __post_init__(self) -> None:
        if all(question.answer is None for question in self.private):
            raise ConfigError(
                f"`answer=gold` takes the private examples' own answers, and none of the {len(self.private)} has one; "
                f"add `answer` to them, or have the teacher answer (`answer=teacher`)."
            )

    def __call__(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One response for each prompt that has an answer there, in the order given; the others are left out."""
        answers = {question.prompt.id: question.answer for question in self.private}
        return [Response(prompt, answer) for prompt in prompts if (answer := answers.get(prompt.id)) is not None]
