"""3. Score: the perplexity of each response under base and teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

from tskd.models import LanguageModel
from tskd.modules import scorer
from tskd.modules.trainer import LightningTrainer
from tskd.records import Response, Scored


@dataclass(frozen=True)
class Score:
    """What the selection rules look at: nll per response token, given the prompt, without and with the fine-tuning."""

    base: LanguageModel
    teacher: LanguageModel
    trainer: LightningTrainer

    def __call__(self, responses: Sequence[Response]) -> list[Scored]:
        """Each response with its two nlls, in the order given."""
        return scorer.score(responses, self.base, self.teacher, self.trainer)
