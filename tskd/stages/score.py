"""3. Score: the perplexity of each response under base and teacher, and what else the selection rule looks at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tskd.models.weights import LanguageModel
from tskd.modules.measures import Judge, check_measures, check_names
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response, Scored


@dataclass(frozen=True)
class Score:
    """What the selection rules look at: nll per response token, given the prompt, without and with the fine-tuning.

    ``measures`` are what else a rule asks for, by name: kl, first_entropy, first_kl (see ``tskd.modules.measures``),
    seed_shift and seed_likeness, which the ``seeds`` are read for, target_nll_per_byte, which the ``target`` is, and
    private_log_odds, which the ``judge`` says; it is only had, and may first have to be trained, when it is asked. One
    that names an unknown measure is a ``ConfigError``.
    """

    base: LanguageModel
    teacher: LanguageModel
    trainer: LightningTrainer
    measures: tuple[str, ...] = ()
    target: LanguageModel | None = None
    seeds: Sequence[Prompt] = ()
    judge: Callable[[], Judge] | None = None

    def __post_init__(self) -> None:
        check_names(self.measures, self.target, self.judge)

    def check_models(self) -> None:
        """Raise ``ConfigError`` where a measure cannot be had of these models. Reads tokenizers, loads no weights."""
        check_measures(self.measures, self.base, self.teacher, self.target, self.judge)
        if (check := getattr(self.judge, "check_models", None)) is not None:
            check()

    def __call__(self, responses: Sequence[Response]) -> list[Scored]:
        """Each response with its two nlls and its measures, in the order given."""
        from tskd.modules.scorer import score

        judge = None if self.judge is None else self.judge()
        models = (self.base, self.teacher, self.trainer)
        return score(responses, *models, self.measures, self.target, self.seeds, judge=judge)
