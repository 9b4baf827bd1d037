"""Intervals and paired tests, all of them scipy's and statsmodels'. Everything is in fractions, not in points.

Two things vary, and each has its own interval: over *seeds*, what another run of the same setting would give (t); over
*questions*, what other held-out questions would have said about these very runs (paired bootstrap, McNemar).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

Values = NDArray[np.float64]
Interval = tuple[float, float]
CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 1000  # resamples at a time, so that memory does not grow with them
MOST_PAIRS = 45  # all of ten arms; of more, each is compared with the first alone
Arm = TypeVar("Arm")


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values, with the standard deviation and the interval where there are enough to have one."""

    mean: float
    n: int
    sd: float | None = None
    interval: Interval | None = None

    def __mul__(self, factor: float) -> "Estimate":
        interval = None if self.interval is None else (factor * self.interval[0], factor * self.interval[1])
        return Estimate(factor * self.mean, self.n, None if self.sd is None else factor * self.sd, interval)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, standard deviation and t interval (``scipy.stats.ttest_1samp``), which equal values do not have.

    One value has no spread either; of none, ``None`` comes back.
    """
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], 1)
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    if np.allclose(
        values, values[0], rtol=1e-12, atol=1e-12
    ):  # as of what no seed decides; an interval without width would claim too much
        return Estimate(values[0], len(values), 0.0)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Estimate(mean, len(values), sd, (float(low), float(high)))


def bootstrap(*samples: Values, statistic: Any = np.mean) -> Interval | None:
    """The BCa interval of a statistic of paired samples (``scipy.stats.bootstrap``); ``None`` where nothing varies."""
    if len(samples[0]) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=BATCH,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test: the binomial one on the items that one of two got right (``scipy.stats.binomtest``)."""
    return float(stats.binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def paired_test(first: Values, second: Values) -> float:
    """The p value for two arms' scores on the same questions, each score the fraction of the seeds that were right.

    With one seed each it is McNemar's exact test, with several the test that flips the signs of the differences
    (``scipy.stats.permutation_test``), of which McNemar's is the case with differences of one.
    """
    difference = first - second
    if set(np.unique(difference)) <= {-1.0, 0.0, 1.0}:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return float(
        stats.permutation_test(
            (difference[difference != 0],),  # the others have no sign
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=BATCH,
            rng=np.random.default_rng(0),
        ).pvalue
    )


def paired_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[Estimate | None, float | None]:
    """For values by seed: the mean difference over common seeds, and the p value of the paired t test.

    Each is ``None`` where it cannot be had: with less than two seeds in common, and where the difference does not vary.
    """
    seeds = [seed for seed in first if seed in second]
    if len(seeds) < 2:
        return None, None
    difference = estimate([first[seed] - second[seed] for seed in seeds])
    varies = difference is not None and difference.interval is not None
    test = [[values[seed] for seed in seeds] for values in (first, second)]
    return difference, float(stats.ttest_rel(*test).pvalue) if varies else None


def pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Which arms are compared: all with all; of very many, all with the first."""
    found = list(combinations(arms, 2))
    return found if len(found) <= MOST_PAIRS else [(arms[0], other) for other in arms[1:]]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (``statsmodels``), in the same order."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def newcombe(only_first: int, only_second: int, both: int, neither: int) -> Interval:
    """An interval for the difference of two paired proportions, first minus second, that holds at the edges too.

    Newcombe (1998, Statistics in Medicine 17:2635), method 10: Wilson's intervals of the two proportions
    (``scipy.stats``), put together by their correlation. Neither scipy nor statsmodels has it for paired data, and the
    bootstrap of items that all agree has no width.
    """
    n = only_first + only_second + both + neither
    first, second = both + only_first, both + only_second
    lows, highs = zip(
        *(stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson") for count in (first, second)),
        strict=True,
    )
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)  # the method's correction for continuity
    variance = first * (n - first) * second * (n - second)
    phi = covariance / math.sqrt(variance) if variance else 0.0

    def distance(of_first: float, of_second: float) -> float:
        return math.sqrt(max(of_first**2 - 2 * phi * of_first * of_second + of_second**2, 0.0))

    p, q = first / n, second / n
    return p - q - distance(p - lows[0], highs[1] - q), p - q + distance(highs[0] - p, q - lows[1])


def recovered_gain(before: Values, teacher: Values, after: Values) -> Estimate | None:
    """(after − before) / (teacher − before) with its bootstrap interval over questions.

    ``None`` where the teacher's lead is within two of its paired standard errors, as in a run's own result.
    """
    lead = teacher - before
    if len(lead) < 2 or lead.mean() <= 2 * lead.std(ddof=1) / math.sqrt(len(lead)):
        return None

    def ratio(before: Values, teacher: Values, after: Values, axis: int = -1) -> Values:
        gained: Values = np.mean(after, axis=axis) - np.mean(before, axis=axis)
        return gained / (np.mean(teacher, axis=axis) - np.mean(before, axis=axis))

    return Estimate(
        float(ratio(before, teacher, after)), len(lead), None, bootstrap(before, teacher, after, statistic=ratio)
    )
