"""Rules without a fixed threshold: all, seeds only, the best, a quantile, by chance, at most."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import ImportString, PositiveInt

from tskd.errors import ConfigError
from tskd.records import Scored, Selection
from tskd.stages.select.stage import ByTheSeeds, Level, Rule, split
from tskd.stages.select.thresholds import LogPplDifference, PplDifference, Threshold


@dataclass(frozen=True)
class KeepAll:
    """Keep every response: no filter, which is what a filter has to be compared with."""

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """All kept, in the order given."""
        return Selection(tuple(scored), ())


@dataclass(frozen=True)
class SeedsOnly:
    """Keep the teacher's answers to the seeds and nothing else: what expansion has to be better than."""

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        return split(scored, [example.response.prompt.is_seed for example in scored])


@dataclass(frozen=True)
class Top:
    """Keep the best by the criterion of the rule ``by``, so many of each iteration, whatever their values.

    ``keep`` is a count (250) or a fraction (0.5, rounded to whole examples; 1.0 is all). Of equals, the first given are
    kept. TiTok (arXiv 2510.04682) keeps 250 of 500 by the mean of log p(teacher) - log p(base) over the response, which
    is ``LogPplDifference``; it does so once, and here it is done in each iteration.
    """

    keep: int | float
    by: ImportString[type[Threshold]] = LogPplDifference

    def __post_init__(self) -> None:
        if not (self.keep >= 1 if isinstance(self.keep, int) else 0 < self.keep <= 1):
            raise ConfigError(
                f"`selection.keep` is {self.keep}; give a count of at least 1, or a fraction above 0 and up to 1.0."
            )

    @property
    def measures(self) -> tuple[str, ...]:
        return self.by.measures

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        values = _criteria(self.by, scored)
        count = self.keep if isinstance(self.keep, int) else round(self.keep * len(scored))
        best = set(sorted(values, key=lambda i: (-values[i], i))[:count])
        return split(scored, [i in best for i in range(len(scored))])


@dataclass(frozen=True)
class Quantile:
    """Keep what is at or above the ``q``-quantile of this iteration's criteria, by the criterion of the rule ``by``.

    An adaptive threshold, as a reviewer asks for: the median (0.5) keeps half. Equals are kept or dropped together.
    """

    q: float
    by: ImportString[type[Threshold]] = PplDifference

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ConfigError(f"`selection.q` is {self.q:g}; a quantile is from 0 (keep all) to 1 (keep the largest).")

    @property
    def measures(self) -> tuple[str, ...]:
        return self.by.measures

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        values = _criteria(self.by, scored)
        # What is at or above the interpolated quantile is at or above the next value from it, which may be infinite,
        # where nothing can be interpolated. 0.07 * 100 is a little more than 7.
        at = math.ceil(round(self.q * (len(values) - 1), 9)) if values else 0
        least = sorted(values.values())[at] if values else math.nan
        return split(scored, [values.get(i, math.nan) >= least for i in range(len(scored))])


@dataclass(frozen=True)
class Random:
    """Keep as many as the rule ``like`` would keep, or a ``fraction``, by chance: what any rule has to be better than.

    The choice follows from ``seed`` and the prompts alone, in whatever order they come. (The paper lacks this control;
    in TiTok's ablation, its rule is worth 1.2 points on BBH and 1.5 on MMLU over it.)
    """

    seed: int
    like: Rule | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.like is None) == (self.fraction is None):
            raise ConfigError(
                f"`selection.like` is {self.like} and `selection.fraction` {self.fraction}; set one and leave the "
                f"other null."
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"`selection.fraction` is {self.fraction:g}; give one above 0 and up to 1.")

    @property
    def measures(self) -> tuple[str, ...]:
        return getattr(self.like, "measures", ())

    def calibrated(self, of_seeds: Sequence[Scored]) -> "Random":
        return replace(self, like=self.like.calibrated(of_seeds)) if isinstance(self.like, ByTheSeeds) else self

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        count = round((self.fraction or 0) * len(scored)) if self.like is None else len(self.like(scored).kept)
        drawn = _drawn(scored, count, self.seed)
        return split(scored, [i in drawn for i in range(len(scored))])


@dataclass(frozen=True)
class AtMost:
    """Keep what the rule ``of`` keeps, or ``keep`` of it by chance where that is more: a budget that rules can share.

    The choice follows from ``seed`` and the prompts alone, as in ``Random``: rules that keep the same in another order
    have the same examples.
    """

    of: Rule
    keep: PositiveInt
    seed: int

    @property
    def measures(self) -> tuple[str, ...]:
        return getattr(self.of, "measures", ())

    @property
    def threshold(self) -> Level:
        return self.of.threshold  # type: ignore[attr-defined, no-any-return]  # a rule without has none here either

    def calibrated(self, of_seeds: Sequence[Scored]) -> "AtMost":
        return replace(self, of=self.of.calibrated(of_seeds)) if isinstance(self.of, ByTheSeeds) else self

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        kept = self.of(scored).kept
        drawn = {id(kept[i]) for i in _drawn(kept, self.keep, self.seed)}
        return split(scored, [id(example) in drawn for example in scored])


def _drawn(scored: Sequence[Scored], count: int, seed: int) -> set[int]:
    """The places of ``count`` examples, by chance; of all where there are no more."""
    draws = [hashlib.sha256(f"{seed}/{example.response.prompt.id}".encode()).digest() for example in scored]
    return set(sorted(range(len(scored)), key=draws.__getitem__)[:count])


def _criteria(by: type[Threshold], scored: Sequence[Scored]) -> dict[int, float]:
    """By index, the criterion of each example where it is a number."""
    values = enumerate(map(by.criterion, scored))
    return {i: value for i, value in values if not math.isnan(value)}
