"""Compute intervals and paired tests by scipy and statsmodels, in fractions.

Two things vary, and each has its own interval. Over *seeds*: what another run of the same setting would give (t).
Over *questions*: what other held-out questions would show of these very runs (paired bootstrap, McNemar).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import scipy  # loads scipy.stats when it is first used
from numpy.typing import NDArray

Values = NDArray[np.float64]
Interval = tuple[float, float]
CONFIDENCE = 0.95
RESAMPLES = 9999
RESAMPLES_AT_ONCE = 1000  # bounds the memory
MAX_PAIRS = 45  # all of ten arms


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values; deviation and interval are ``None`` with too few values."""

    mean: float
    n: int
    sd: float | None = None
    interval: Interval | None = None

    def __mul__(self, factor: float) -> "Estimate":
        interval = None if self.interval is None else (factor * self.interval[0], factor * self.interval[1])
        return Estimate(factor * self.mean, self.n, None if self.sd is None else factor * self.sd, interval)


@dataclass(frozen=True)
class ArmScores:
    """An arm's scores by item (N,), a question or a subset, and its accuracy by seed."""

    label: str
    of_items: Values
    of_seeds: Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """Two arms on the same items, first minus second, in fractions.

    ``p`` is over the items, for these very runs; ``over_seeds`` and ``p_over_seeds`` are for the settings.
    """

    first: str
    second: str
    difference: Estimate | None
    first_ahead: float
    second_ahead: float
    p: float
    p_holm: float
    over_seeds: Estimate | None
    p_over_seeds: float | None


def mean_and_sd(values: Sequence[float]) -> Estimate | None:
    """Compute mean and sample standard deviation.

    Returns:
        ``None`` for no values; a single value has no deviation, equal values have a deviation of exactly 0.
    """
    if len(values) < 2:
        return Estimate(values[0], 1) if values else None
    if np.allclose(values, values[0], rtol=1e-12, atol=1e-12):
        return Estimate(values[0], len(values), 0.0)
    return Estimate(float(np.mean(values)), len(values), float(np.std(values, ddof=1)))


def numbers(results: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """Return a metric of those results that have it."""
    return [float(result[name]) for result in results if isinstance(result.get(name), (int, float))]


def summarise(results: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[Estimate | None]:
    """Compute mean and standard deviation of each metric, in the order of ``names``.

    A metric that no result has is ``None``.
    """
    return [mean_and_sd(numbers(results, name)) for name in names]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Compute mean, standard deviation and t interval (``scipy.stats.ttest_1samp``).

    Returns:
        ``None`` for no values. Equal values have no interval: one without width would claim too much.
    """
    found = mean_and_sd(values)
    if found is None or not found.sd:
        return found
    low, high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return replace(found, interval=(float(low), float(high)))


def bootstrap(*samples: Values, statistic: Any = np.mean) -> Interval | None:
    """Compute the BCa bootstrap interval of a statistic of paired samples.

    Returns:
        ``None`` if nothing varies.
    """
    if len(samples[0]) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return None
    options = {"paired": True, "confidence_level": CONFIDENCE, "method": "BCa", **_resampling()}
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = scipy.stats.bootstrap(samples, statistic, **options).confidence_interval
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def _resampling() -> dict[str, Any]:
    return {
        "vectorized": True,
        "n_resamples": RESAMPLES,
        "batch": RESAMPLES_AT_ONCE,
        "rng": np.random.default_rng(0),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the p value of McNemar's exact test on items that only one has right."""
    discordant = only_first + only_second
    return float(scipy.stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_test(first: Values, second: Values) -> float:
    """Compute the p value for two arms' scores (N,) on the same items.

    Differences of -1, 0 and 1, as single seeds have, take McNemar's exact test. Others take the test that flips their
    signs (``scipy.stats.permutation_test``), which generalises it.
    """
    difference = first - second
    if set(np.unique(difference)) <= {-1.0, 0.0, 1.0}:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    signed = (difference[difference != 0],)
    return float(scipy.stats.permutation_test(signed, np.mean, permutation_type="samples", **_resampling()).pvalue)


def paired_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[Estimate | None, float | None]:
    """Compare values by seed over the seeds that both have.

    Returns:
        The mean difference and the p value of the paired t test. Both are ``None`` with fewer than two seeds in
        common, the latter also if the difference does not vary.
    """
    seeds = [seed for seed in first if seed in second]
    if len(seeds) < 2:
        return None, None
    difference = estimate([first[seed] - second[seed] for seed in seeds])
    if difference is None or difference.interval is None:
        return difference, None
    pairs = ([values[seed] for seed in seeds] for values in (first, second))
    return difference, float(scipy.stats.ttest_rel(*pairs).pvalue)


def compare(
    arms: Sequence[ArmScores], difference: Callable[[Values], Estimate | None], ahead: Callable[[Values], float]
) -> tuple[Comparison, ...]:
    """Compare all pairs of arms, or all with the first beyond ``MAX_PAIRS`` pairs.

    Args:
        arms: Scores of the same items.
        difference: Estimates the mean of the differences by item (N,).
        ahead: Counts the items on which the first arm leads, from the same differences.

    Returns:
        Each pair, with Holm's correction over the pairs.
    """
    compared = list(combinations(arms, 2))
    if len(compared) > MAX_PAIRS:
        compared = [(arms[0], other) for other in arms[1:]]
    p_values = [paired_test(first.of_items, second.of_items) for first, second in compared]
    found = []
    for (first, second), p, p_holm in zip(compared, p_values, holm(p_values), strict=True):
        lead = first.of_items - second.of_items
        over_seeds = paired_over_seeds(first.of_seeds, second.of_seeds)
        counts = ahead(lead), ahead(-lead)
        found.append(Comparison(first.label, second.label, difference(lead), *counts, p, p_holm, *over_seeds))
    return tuple(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values by Holm's method, in the same order."""
    from statsmodels.stats.multitest import multipletests  # takes a second to load

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def newcombe(only_first: int, only_second: int, both: int, neither: int) -> Interval:
    """Compute an interval for the difference of two paired proportions.

    It has width even if all items agree, where the bootstrap has none.

    Source:
        Newcombe (1998, Statistics in Medicine 17:2635), method 10: Wilson's intervals of the two proportions, combined
        by their correlation. Neither scipy nor statsmodels has it for paired data.
    """
    n = only_first + only_second + both + neither
    first, second = both + only_first, both + only_second
    wilson = (scipy.stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson") for count in (first, second))
    (low, high), (other_low, other_high) = wilson
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)  # the method's correction for continuity
    variance = first * (n - first) * second * (n - second)
    phi = covariance / math.sqrt(variance) if variance else 0.0

    def distance(of_first: float, of_second: float) -> float:
        return math.sqrt(max(of_first**2 - 2 * phi * of_first * of_second + of_second**2, 0.0))

    p, q = first / n, second / n
    return p - q - distance(p - low, other_high - q), p - q + distance(high - p, q - other_low)


def recovered_gain(before: Values, teacher: Values, after: Values) -> Estimate | None:
    """Compute (after − before) / (teacher − before) and its bootstrap interval.

    Burns et al. (2023) call it performance gap recovered.

    Args:
        before, teacher, after: Scores by question (N,) of the untouched target, the teacher and the tuned target.

    Returns:
        ``None`` if the teacher leads by two paired standard errors or less, as in a run's own result.
    """
    lead = teacher - before
    if len(lead) < 2 or lead.mean() <= 2 * lead.std(ddof=1) / math.sqrt(len(lead)):
        return None

    def ratio(before: Values, teacher: Values, after: Values, axis: int = -1) -> Values:
        gained: Values = np.mean(after, axis=axis) - np.mean(before, axis=axis)
        return gained / (np.mean(teacher, axis=axis) - np.mean(before, axis=axis))

    interval = bootstrap(before, teacher, after, statistic=ratio)
    return Estimate(float(ratio(before, teacher, after)), len(lead), None, interval)
