"""The mean over the subsets of a benchmark, as papers report it: over BBH's 27 tasks, over MMLU's 57 subjects.

Each subset has been a run of its own, and counts as much however many questions it has. A run on several at once has
this mean as its accuracy.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tskd.records import PRIVATE
from tskd.report import statistics
from tskd.report.runs import (
    SEED,
    SUBSET,
    FoundRun,
    Study,
    decisive,
    following,
    labels,
    names_apart,
    natural,
    task_name,
)
from tskd.report.statistics import Estimate, Values

ACCURACY = "eval/accuracy"
METRICS = ("eval/target_accuracy", "eval/teacher_accuracy", ACCURACY, "eval/points_gained")
Jobs = Mapping[tuple[str, int], FoundRun]  # by subset and seed


@dataclass(frozen=True)
class ArmMeans:
    """The mean over subsets of each metric, over seeds, and of the accuracy by seed; each subset's mean over seeds."""

    label: str
    metrics: Mapping[str, Estimate | None]
    of_seeds: Mapping[int, float]
    of_subsets: Values


@dataclass(frozen=True)
class Comparison:
    """Two arms on the same subsets, first minus second, in fractions: over subsets, and over seeds that both have."""

    first: str
    second: str
    difference: Estimate | None
    first_higher: int
    second_higher: int
    p: float
    p_holm: float
    over_seeds: Estimate | None
    p_over_seeds: float | None


@dataclass(frozen=True)
class Means:
    """``left_out`` says of each seed that does not count which subsets it lacks, and of what else does not, why."""

    name: str
    benchmark: str
    subsets: tuple[str, ...]
    arms: tuple[ArmMeans, ...]
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]


def of(studies: Sequence[Study]) -> list[Means]:
    """One for each benchmark of which several subsets were run alone, with the same settings of the task."""
    alike: dict[Any, list[FoundRun]] = defaultdict(list)
    for study in studies:
        for run in (run for arm in study.arms for run in arm.runs):
            has_all = all(isinstance(run.result.get(name), (int, float)) for name in METRICS)
            if run.subset and has_all and len(_groups(run)) == 1:
                of_task = {name: value for name, value in run.settings.items() if name.startswith("task.")}
                alike[decisive(of_task, {SUBSET})].append(run)
    found = [_of(runs) for runs in alike.values() if len({run.subset for run in runs}) > 1]
    names = names_apart([each.name for each in found])
    return [replace(each, name=name) for each, name in zip(found, names, strict=True)]


def _groups(run: FoundRun) -> set[str]:
    return {answer.group for answer in run.graded.get("teacher", ()) if answer.split == PRIVATE}


def _of(runs: Sequence[FoundRun]) -> Means:
    apart = {SEED, SUBSET, *following(runs)}
    arms: dict[str, dict[tuple[str, int], FoundRun]] = defaultdict(dict)
    left_out = []
    for run in runs:
        jobs, job = arms[decisive(run.settings, apart)], (run.subset, run.seed)
        if job in jobs:
            left_out.append(f"{jobs[job].folder} is {run.folder} on other questions; the mean has the latter alone.")
        jobs[job] = run
    subsets = sorted({run.subset for run in runs})
    named = labels([next(iter(jobs.values())) for jobs in arms.values()], apart)
    benchmark, found = task_name(runs[0]), []
    for label, jobs in sorted(zip(named, arms.values(), strict=True), key=lambda arm: natural(arm[0])):
        seeds = []
        for seed in sorted({seed for _, seed in jobs}):
            if missing := [subset for subset in subsets if (subset, seed) not in jobs]:
                shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
                left_out.append(
                    f"{benchmark}, {label}, seed {seed} does not count in the mean over {len(subsets)} subsets: it "
                    f"lacks {shown}."
                )
            else:
                seeds.append(seed)
        if seeds:
            found.append(_of_arm(label, jobs, subsets, seeds))
    name = f"{benchmark}, mean over {len(subsets)} subsets"
    return Means(name, benchmark, tuple(subsets), tuple(found), tuple(_comparisons(found)), tuple(left_out))


def _of_arm(label: str, jobs: Jobs, subsets: Sequence[str], seeds: Sequence[int]) -> ArmMeans:
    values = {
        name: np.array([[jobs[subset, seed].result[name] for seed in seeds] for subset in subsets], dtype=float)
        for name in METRICS
    }  # (subsets, seeds)
    metrics = {name: statistics.estimate(each.mean(axis=0).tolist()) for name, each in values.items()}
    of_seeds = dict(zip(seeds, values[ACCURACY].mean(axis=0).tolist(), strict=True))
    # Rounded, so that equal means of several seeds are equal.
    return ArmMeans(label, metrics, of_seeds, values[ACCURACY].mean(axis=1).round(12))


def _comparisons(arms: Sequence[ArmMeans]) -> Iterator[Comparison]:
    pairs = statistics.pairs(arms)
    p_values = [statistics.paired_test(first.of_subsets, second.of_subsets) for first, second in pairs]
    for (first, second), p, p_holm in zip(pairs, p_values, statistics.holm(p_values), strict=True):
        difference = first.of_subsets - second.of_subsets
        over_seeds, p_over_seeds = statistics.paired_over_seeds(first.of_seeds, second.of_seeds)
        higher, lower = int((difference > 0).sum()), int((difference < 0).sum())
        estimate = statistics.estimate(difference.tolist())
        yield Comparison(first.label, second.label, estimate, higher, lower, p, p_holm, over_seeds, p_over_seeds)
