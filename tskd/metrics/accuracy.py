"""Accuracy on held-out questions, by split, and what the target gained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev

from tskd.records import PRIVATE, Graded


@dataclass(frozen=True)
class Accuracy:
    """Which questions of one split were answered right, and the group of each (a benchmark's subset)."""

    correct: tuple[bool, ...]
    groups: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The mean over groups of the mean in each, as benchmarks with subsets are reported; nan without questions."""
        return fmean(map(fmean, self._by_group)) if self.correct else math.nan

    @property
    def standard_error(self) -> float:
        """Of ``value``, for questions drawn at random in each group; nan where a group has fewer than two."""
        groups = self._by_group
        if any(len(group) < 2 for group in groups) or not groups:
            return math.nan
        return math.sqrt(sum(stdev(group) ** 2 / len(group) for group in groups)) / len(groups)

    @property
    def _by_group(self) -> list[list[float]]:
        if not self.groups:
            return [[float(right) for right in self.correct]] if self.correct else []
        pairs = sorted(zip(self.groups, self.correct, strict=True))
        return [[float(right) for _, right in pairs] for _, pairs in groupby(pairs, key=lambda pair: pair[0])]


def by_split(graded: Sequence[Graded]) -> dict[str, Accuracy]:
    """The accuracy in each split, in the order in which the splits first come."""
    splits = dict.fromkeys(answer.split for answer in graded)
    return {
        split: Accuracy(
            tuple(answer.correct for answer in graded if answer.split == split),
            tuple(answer.group for answer in graded if answer.split == split),
        )
        for split in splits
    }


def recovered_gain(before: Accuracy, teacher: Accuracy, after: Accuracy) -> float | None:
    """(after − before) / (teacher − before), or ``None`` where the teacher's lead is within two standard errors.

    The standard error is the paired one: of the mean of the differences on the same questions.
    """
    lead = [float(t) - float(b) for t, b in zip(teacher.correct, before.correct, strict=True)]
    if len(lead) < 2 or fmean(lead) <= 2 * stdev(lead) / math.sqrt(len(lead)):
        return None
    denominator = teacher.value - before.value
    return (after.value - before.value) / denominator if denominator > 0 else None


def mean_accuracy(results: Mapping[str, Accuracy], split: str = PRIVATE) -> float | None:
    return results[split].value if split in results else None
