"""Screen: drop prompts before they are answered, by what the teacher makes of them; most of the cost is in answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ImportString

from tskd.errors import ConfigError
from tskd.models.weights import LanguageModel
from tskd.modules.measures import MEASURES, check_measures
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response, Scored, Screening
from tskd.stages.select.stage import AUTO, Level, Select
from tskd.stages.select.thresholds import SeedShift, Threshold


@dataclass(frozen=True)
class Screen:
    """Prompts whose criterion, the one of the rule ``by``, reaches ``threshold``; ``auto`` is what the seeds reach.

    Only a criterion that is known before a word is written can be asked for: its rule measures nothing else.
    Ours; the paper answers all prompts.
    """

    base: LanguageModel
    teacher: LanguageModel
    trainer: LightningTrainer
    threshold: Level = AUTO
    recall: float = 0.9
    by: ImportString[type[Threshold]] = SeedShift

    def __post_init__(self) -> None:
        self.by(self.threshold, self.recall)
        before = [name for name, measure in MEASURES.items() if measure.is_known_before]
        later = [name for name in self.by.measures if name not in before]
        if later or self._reads_the_response():
            raise ConfigError(
                f"`selection.screen.by` is {self.by.__name__}, which looks at {' and '.join(later) or 'the response'}; "
                f"a screen comes before the response, and can look at {', '.join(before)} alone."
            )

    def _reads_the_response(self) -> bool:
        """Whether the criterion is no number where the response has no perplexity."""
        known = dict.fromkeys(self.by.measures, 0.5)
        return math.isnan(self.by.criterion(Scored(Response(Prompt(""), ""), math.nan, math.nan, 0, known)))

    def check_models(self) -> None:
        """Raise ``ConfigError`` where what is measured cannot be had of these models. Loads no weights."""
        check_measures(self.by.measures, self.base, self.teacher)

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[Prompt]) -> Screening:
        """Which of ``prompts`` are worth an answer, and which are not, each in the order given."""
        if not prompts:
            return Screening(())
        from tskd.modules.scorer import score

        unanswered = [Response(prompt, "") for prompt in (*seeds, *prompts)]
        scored = score(unanswered, self.base, self.teacher, self.trainer, self.by.measures, seeds=seeds, label="screen")
        rule = Select(self.by(self.threshold, self.recall))
        selection = rule(scored[len(seeds) :], scored[: len(seeds)])
        passed, screened = ([each.response.prompt for each in side] for side in (selection.kept, selection.dropped))
        return Screening(tuple(passed), tuple(screened))
