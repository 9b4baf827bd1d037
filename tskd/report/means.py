"""Average over the subsets of a benchmark, as papers report it.

Each subset is a run of its own and has the same weight, however many questions it has. A run on several subsets at once
has this mean as its accuracy.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tskd.records import PRIVATE
from tskd.report import statistics
from tskd.report.runs import SEED, SUBSET, FoundRun, Study, abbreviate, decisive, group_by_settings, number_repeats
from tskd.report.statistics import ArmScores, Comparison, Estimate

ACCURACY = "eval/accuracy"
METRICS = ("eval/target_accuracy", "eval/teacher_accuracy", ACCURACY, "eval/points_gained")
Jobs = Mapping[tuple[str, int], FoundRun]  # by subset and seed


@dataclass(frozen=True)
class ArmMeans(ArmScores):
    """An arm's accuracies, and the mean over subsets of each metric, over seeds."""

    metrics: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Means:
    """The means over subsets, and a line for each seed or run that does not count."""

    name: str
    benchmark: str
    subsets: tuple[str, ...]
    arms: tuple[ArmMeans, ...]
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]


def average_over_subsets(studies: Sequence[Study]) -> list[Means]:
    """Average each benchmark of which several subsets were run alone.

    The runs must agree in the other settings of the task.
    """
    alike: dict[str, list[FoundRun]] = defaultdict(list)
    for run in (run for study in studies for arm in study.arms for run in arm.runs):
        has_all = all(isinstance(run.result.get(name), (int, float)) for name in METRICS)
        groups = {answer.group for answer in run.graded.get("teacher", ()) if answer.split == PRIVATE}
        if run.subset and has_all and len(groups) == 1:
            of_task = {name: value for name, value in run.settings.items() if name.startswith("task.")}
            alike[decisive(of_task, {SUBSET})].append(run)
    found = [_average(runs) for runs in alike.values() if len({run.subset for run in runs}) > 1]
    names = number_repeats([each.name for each in found])
    return [replace(each, name=name) for each, name in zip(found, names, strict=True)]


def _average(runs: Sequence[FoundRun]) -> Means:
    left_out: list[str] = []
    again = "{0} is {1} on other questions; the mean has the latter alone."
    groups = group_by_settings(runs, {SEED, SUBSET}, lambda run: (run.subset, run.seed), again, left_out)
    subsets = sorted({run.subset for run in runs})
    benchmark, arms = runs[0].benchmark, []
    for label, jobs in groups:
        seeds = []
        for seed in sorted({seed for _, seed in jobs}):
            if missing := [subset for subset in subsets if (subset, seed) not in jobs]:
                left_out.append(
                    f"{benchmark}, {label}, seed {seed} does not count in the mean over {len(subsets)} subsets: it "
                    f"lacks {abbreviate(missing)}."
                )
            else:
                seeds.append(seed)
        if seeds:
            arms.append(_average_arm(label, jobs, subsets, seeds))
    name = f"{benchmark}, mean over {len(subsets)} subsets"
    comparisons = statistics.compare(arms, lambda lead: statistics.estimate(lead.tolist()), _count_positive)
    return Means(name, benchmark, tuple(subsets), tuple(arms), comparisons, tuple(left_out))


def _count_positive(lead: statistics.Values) -> int:
    return int((lead > 0).sum())


def _average_arm(label: str, jobs: Jobs, subsets: Sequence[str], seeds: Sequence[int]) -> ArmMeans:
    def values(name: str) -> Any:
        """Stack a metric (subsets, seeds)."""
        return np.array([[jobs[subset, seed].result[name] for seed in seeds] for subset in subsets], dtype=float)

    of_seeds = dict(zip(seeds, values(ACCURACY).mean(axis=0).tolist(), strict=True))
    of_subsets = values(ACCURACY).mean(axis=1).round(12)  # so that equal means of several seeds are equal
    metrics = {name: statistics.estimate(values(name).mean(axis=0).tolist()) for name in METRICS}
    return ArmMeans(label, of_subsets, of_seeds, metrics)
