"""Rules that keep what reaches a threshold, and the criteria that they compare with it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from tskd.errors import ConfigError
from tskd.records import Scored, Selection
from tskd.stages.select.stage import AUTO, MIN_SEEDS, Level, split


def reached_by_seeds(values: Sequence[float], recall: float) -> float:
    """The level that at least ``recall`` of prompts like the seeds reach, told by the seeds' own ``values``.

    It is the k-th smallest, k = ⌊(1 - recall)(n + 1)⌋: whatever the distribution, one more prompt drawn as the n seeds
    were reaches it with probability 1 - k/(n + 1) at least (split conformal prediction: Vovk, Gammerman & Shafer 2005).
    Few seeds give no level for a high recall; it is then their smallest, which is reached with n/(n + 1).
    Raises ``ConfigError`` where fewer than three values are numbers.
    """
    numbers = sorted(value for value in values if not math.isnan(value))
    if len(numbers) < MIN_SEEDS:
        raise ConfigError(
            f"`threshold: auto` is told by the seeds, and {len(numbers)} of {len(values)} have a criterion that is a "
            f"number; give at least {MIN_SEEDS} seeds, or a number for `threshold`."
        )
    return numbers[max(1, math.floor(round((1 - recall) * (len(numbers) + 1), 9))) - 1]


@dataclass(frozen=True)
class Threshold(ABC):
    """Keep where the criterion is at least ``threshold``, which is in the criterion's unit.

    ``auto`` is the level that ``recall`` of prompts like the seeds reach (``reached_by_seeds``); ours.
    """

    threshold: Level
    recall: float = 0.8
    measures: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.recall < 1:
            raise ConfigError(f"`selection.recall` is {self.recall:g}; give a share above 0 and below 1.")

    @staticmethod
    @abstractmethod
    def criterion(example: Scored) -> float:
        """Larger where the example is more worth keeping; not a number where that cannot be told."""

    def calibrated(self, of_seeds: Sequence[Scored]) -> Self:
        if self.threshold != AUTO:
            return self
        return replace(self, threshold=reached_by_seeds([self.criterion(e) for e in of_seeds], self.recall))

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given. Raises ``ValueError`` where the threshold is still ``auto``."""
        return split(scored, [self.criterion(example) >= float(self.threshold) for example in scored])


@dataclass(frozen=True)
class PplDifference(Threshold):
    """Keep where base perplexity minus teacher perplexity is at least ``threshold``: the paper's rule.

    A fixed difference, "e.g. 1.5", according to its reviews; that it is of perplexities and not of their logarithms
    is how we read them.
    """

    @staticmethod
    def criterion(example: Scored) -> float:
        return example.gap


@dataclass(frozen=True)
class LogPplDifference(Threshold):
    """Keep where base nll minus teacher nll is at least ``threshold`` nats per token (Moore & Lewis 2010, ACL).

    They score a text by its cross-entropy under an in-domain model minus that under a general one, and keep what is
    below a threshold. It is the logarithm of the ratio of perplexities: at log 1.5 = 0.41, what the base finds 1.5
    times as perplexing is kept.
    """

    @staticmethod
    def criterion(example: Scored) -> float:
        return example.base_nll - example.teacher_nll


@dataclass(frozen=True)
class PplRatio(Threshold):
    """Keep where base nll over teacher nll is at least ``threshold``: a reviewer's alternative to a difference.

    It asks for a smaller difference where the teacher is surer. The ratio is of log-perplexities: one of perplexities
    is ``LogPplDifference`` at the threshold's logarithm. Where the teacher is certain (nll 0) it is infinite, and no
    number where the base is certain too; that is dropped, for nothing was learnt.
    """

    @staticmethod
    def criterion(example: Scored) -> float:
        if example.teacher_nll <= 0:
            return math.inf if example.base_nll > 0 else math.nan
        return example.base_nll / example.teacher_nll


@dataclass(frozen=True)
class InversePplDifference(Threshold):
    """Keep where 1/teacher perplexity minus 1/base perplexity is at least ``threshold``, between -1 and 1; ours.

    An inverse perplexity is the geometric mean of the tokens' probabilities. What the base finds absurd counts hardly
    more here than what it finds unlikely, and what neither is sure of counts little.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold != AUTO and not -1 < self.threshold < 1:
            raise ConfigError(
                f"`threshold` is {self.threshold:g}, and a difference of inverse perplexities is between -1 and 1; "
                f"set it to 0.1, for example."
            )

    @staticmethod
    def criterion(example: Scored) -> float:
        return math.exp(-example.teacher_nll) - math.exp(-example.base_nll)


@dataclass(frozen=True)
class Kl(Threshold):
    """Keep where the mean KL(teacher ‖ base) over the response is at least ``threshold`` nats per token; ours.

    The nlls are of the tokens that were written; this compares all that could have been written in their places.
    """

    measures: ClassVar[tuple[str, ...]] = ("kl",)

    @staticmethod
    def criterion(example: Scored) -> float:
        return example.measures["kl"]


@dataclass(frozen=True)
class SeedShift(Threshold):
    """Keep where the fine-tuning moves the model as it does on the seeds, by at least ``threshold``; ours.

    Before it answers a prompt, a model is in a state: its last hidden one, h. The fine-tuning shifts it, by h of the
    teacher minus h of the base. Compared is how far it shifts it in the direction of the mean shift on the seeds, in
    lengths of the base's h. It is meant to be small where the base would answer alike, for then the shift is short, and
    where the teacher says something new that is unlike what it was tuned for, a style for example, for then it has
    another direction. So it is where the topic of a prompt tells as much, and not where the base knows a part of the
    private topic (``experiments/selection``). It is known before a word is written. That directions in hidden states
    tell tasks apart is from work on task and function vectors (Hendel et al. 2023, arXiv 2310.15916; Todd et al. 2023,
    arXiv 2310.15213).
    """

    measures: ClassVar[tuple[str, ...]] = ("seed_shift",)

    @staticmethod
    def criterion(example: Scored) -> float:
        return example.measures["seed_shift"]


@dataclass(frozen=True)
class SeedLikeness(Threshold):
    """Keep where a prompt is, to the fine-tuning, at least so like the seeds, between 0 and 1; ours.

    A product of form and ground (``tskd.modules.scorer.seed_likeness``): what the teacher may begin its response with
    is compared with what it may begin its responses to the seeds with, by Bhattacharyya's coefficient (1943); and where
    the fine-tuning moves the state before the response, with where it moves it there. It is known before a word is
    written, and tells nothing of what the base knows already: a screen, with which ``SeedGap`` goes well.
    """

    measures: ClassVar[tuple[str, ...]] = ("seed_likeness",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold != AUTO and not 0 <= self.threshold <= 1:
            raise ConfigError(
                f"`threshold` is {self.threshold:g}, and the criterion is between 0 and 1; set threshold=auto."
            )

    @staticmethod
    def criterion(example: Scored) -> float:
        return example.measures["seed_likeness"]


@dataclass(frozen=True)
class SeedGap(SeedLikeness):
    """Keep where the fine-tuning explains the response, and the prompt is like the seeds: 0 to 1; ours.

    The share of the base's perplexity that it takes away, 1 - teacher ppl / base ppl, which is the paper's gap without
    a unit, times ``SeedLikeness``. Each factor is a condition that what is to be carried over has to meet: the gap
    alone takes a style for knowledge, and likeness alone what the base knows as well. Which styles still pass, and how
    the factors were chosen: ``experiments/selection``.
    """

    @staticmethod
    def criterion(example: Scored) -> float:
        worse = example.teacher_nll - example.base_nll
        explained = 0.0 if worse > 0 else -math.expm1(worse)
        return explained * SeedLikeness.criterion(example)


@dataclass(frozen=True)
class TargetGap(Threshold):
    """Keep where the untouched target's nll minus the teacher's is at least ``threshold`` nats per byte.

    After LLKD (arXiv 2411.08028), which keeps what its teacher is confident of and its student is not. Per byte of the
    response, because the two have tokenizers of their own; an empty one counts as one byte.
    """

    measures: ClassVar[tuple[str, ...]] = ("target_nll_per_byte",)

    @staticmethod
    def criterion(example: Scored) -> float:
        num_bytes = max(1, len(example.response.text.encode("utf-8", "surrogatepass")))
        return example.measures["target_nll_per_byte"] - example.teacher_nll * example.tokens / num_bytes


@dataclass(frozen=True)
class Discriminator(Threshold):
    """Keep where a discriminator finds it likelier that the prompt is private than that it is synthetic (Trans-LoRA).

    The log-odds that the base, fine-tuned to tell the two apart (``tskd.stages.discriminator``), gives "yes" over
    "no"; at threshold 0, as in Trans-LoRA (arXiv 2405.17258), p(yes) > p(no). It looks at prompts alone, and
    has to have seen the private ones once.
    """

    measures: ClassVar[tuple[str, ...]] = ("private_log_odds",)

    @staticmethod
    def criterion(example: Scored) -> float:
        return example.measures["private_log_odds"]


@dataclass(frozen=True)
class ConfidentTeacher:
    """Keep where the teacher's perplexity is at most one bound and the base's at least another.

    After LLKD (arXiv 2411.08028) with the base in the student's place: the paper's idea, "confident" against
    "struggles", as two conditions, where a difference alone also keeps what both find odd.
    """

    teacher_ppl_at_most: float
    base_ppl_at_least: float

    def __post_init__(self) -> None:
        problems = [
            f"`selection.{name}` is {bound:g}, and a perplexity is never below 1"
            for name, bound in vars(self).items()
            if not bound >= 1
        ]
        if self.teacher_ppl_at_most > self.base_ppl_at_least:
            problems.append(
                f"`selection.teacher_ppl_at_most` ({self.teacher_ppl_at_most:g}) is above `base_ppl_at_least` "
                f"({self.base_ppl_at_least:g}), which would keep what the base is surer of than the teacher"
            )
        if problems:
            raise ConfigError(*(f"{problem}." for problem in problems))

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        sure, unsure = self.teacher_ppl_at_most, self.base_ppl_at_least
        return split(scored, [e.teacher_ppl <= sure and e.base_ppl >= unsure for e in scored])
