"""What the runs of a study say: each arm's numbers, arms against each other, what was kept, where the target fails."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tskd.metrics.iteration import distinct
from tskd.records import PRIVATE, Graded
from tskd.report import statistics
from tskd.report.diversity import Embed, Spread, self_bleu, spreads
from tskd.report.runs import Arm, FoundRun, Study
from tskd.report.statistics import Estimate, Values

COSTS = {
    "generated_tokens": ("cost/generated_tokens",),
    "trained_tokens": ("cost/trained_tokens",),
    "seconds": ("cost/seconds", "cost/reused_seconds"),  # what is taken from the store has cost somebody as much
}


@dataclass(frozen=True)
class ArmFindings:
    """``metrics`` are over seeds, those of a run's result by name; ``recovered`` and ``scores`` are over questions."""

    arm: Arm
    metrics: Mapping[str, Estimate]
    recovered: Estimate | None
    scores: Mapping[str, Values]
    distinct_1: float | None
    distinct_2: float | None
    self_bleu: float | None
    spread: Spread | None = None

    @property
    def costs(self) -> dict[str, Estimate | None]:
        return {
            cost: statistics.estimate([spent(run.result, cost) for run in self.arm.runs if parts[0] in run.result])
            for cost, parts in COSTS.items()
        }

    def gained_per(self, cost: str) -> float | None:
        """Points gained for a unit of cost, both as means over the seeds."""
        gained, paid = self.metrics.get("eval/points_gained"), self.costs[cost]
        return None if gained is None or paid is None or not paid.mean else gained.mean / paid.mean


@dataclass(frozen=True)
class Comparison:
    """Two arms on the same held-out questions, first minus second, in fractions.

    ``p`` is over questions, for these very runs; ``over_seeds`` and ``p_over_seeds`` are for the settings.
    """

    first: str
    second: str
    difference: float
    interval: statistics.Interval | None
    only_first: float
    only_second: float
    p: float
    p_holm: float
    over_seeds: Estimate | None
    p_over_seeds: float | None


@dataclass(frozen=True)
class Failure:
    """A held-out question that the teacher gets right and the target does not, in ``wrong`` of an arm's ``n`` runs."""

    arm: str
    question: str
    group: str
    wrong: int
    n: int
    known_before: bool
    teacher: str
    target: str


@dataclass(frozen=True)
class Example:
    """A prompt and its response, and in how many of the runs that scored it they were kept."""

    prompt: str
    response: str
    base_ppl: float
    teacher_ppl: float
    gap: float
    kept: int = 0
    scored: int = 0


@dataclass(frozen=True)
class Findings:
    study: Study
    arms: tuple[ArmFindings, ...]
    comparisons: tuple[Comparison, ...]
    failures: tuple[Failure, ...]
    examples: tuple[Example, ...]


def spent(row: Mapping[str, Any], cost: str) -> float:
    """What a run's result, or a row of its metrics, has cost of one kind."""
    return float(sum(row.get(part) or 0 for part in COSTS[cost]))


def of(study: Study, embed: Embed | None = None) -> Findings:
    """``embed``, where it is given, is what the spread of prompts is measured by."""
    arms = tuple(_of_arm(arm) for arm in study.arms)
    if embed is not None:
        of_arms = spreads([_written(arm) for arm in study.arms], embed)
        arms = tuple(replace(arm, spread=spread) for arm, spread in zip(arms, of_arms, strict=True))
    return Findings(study, arms, tuple(_comparisons(arms)), tuple(_failures(study)), tuple(_examples(study)))


def _of_arm(arm: Arm) -> ArmFindings:
    results = [{**run.result, **run.repeats} for run in arm.runs]
    names = dict.fromkeys(name for result in results for name in result)
    metrics = {name: statistics.estimate(_numbers(result.get(name) for result in results)) for name in names}
    scores = {voice: _scores(arm.runs, voice) for voice in arm.runs[0].graded}
    voices = [scores.get(voice) for voice in ("target before", "teacher", "target after")]
    before, teacher, after = (None if each is None or not len(each) else each for each in voices)
    shown = before is not None and teacher is not None and after is not None
    prompts = _written(arm)
    return ArmFindings(
        arm,
        {name: estimate for name, estimate in metrics.items() if estimate is not None},
        statistics.recovered_gain(before, teacher, after) if shown else None,  # type: ignore[arg-type]
        scores,
        distinct(prompts, 1),
        distinct(prompts, 2),
        self_bleu(prompts),
    )


def _written(arm: Arm) -> list[str]:
    """The distinct prompts that expansion wrote."""
    asked = [example.response.prompt for run in arm.runs for example in [*run.kept, *run.dropped]]
    return list(dict.fromkeys(prompt.text for prompt in asked if not prompt.is_seed))


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if isinstance(value, (int, float))]


def _scores(runs: Sequence[FoundRun], voice: str) -> Values:
    """For each private question, in the order of the questions, the fraction of the runs that have it right.

    Weighted so that their mean is the accuracy as reported: that over the groups of a benchmark.
    """
    asked = [[answer for answer in run.graded[voice] if answer.split == PRIVATE] for run in runs]
    sizes = Counter(answer.group for answer in asked[0])
    weights = np.array([len(asked[0]) / len(sizes) / sizes[answer.group] for answer in asked[0]])
    return weights * np.array([[answer.correct for answer in of_run] for of_run in asked], dtype=float).mean(axis=0)


def _comparisons(arms: Sequence[ArmFindings]) -> list[Comparison]:
    evaluated = [arm for arm in arms if len(arm.scores.get("target after", ()))]
    tested = [_compared(first, second) for first, second in statistics.pairs(evaluated)]
    corrected = statistics.holm([comparison["p"] for comparison in tested])
    return [Comparison(**each, p_holm=p) for each, p in zip(tested, corrected, strict=True)]


def _compared(first: ArmFindings, second: ArmFindings) -> dict[str, Any]:
    ours, theirs = (arm.scores["target after"] for arm in (first, second))
    by_seed = ({run.seed: run.result.get("eval/accuracy") for run in arm.arm.runs} for arm in (first, second))
    known = ({seed: value for seed, value in of_arm.items() if value is not None} for of_arm in by_seed)
    over_seeds, p_over_seeds = statistics.paired_over_seeds(*known)
    return {
        "first": first.arm.label,
        "second": second.arm.label,
        "difference": float(np.mean(ours - theirs)),
        "interval": statistics.bootstrap(ours - theirs),
        "only_first": float(np.clip(ours - theirs, 0, None).sum()),
        "only_second": float(np.clip(theirs - ours, 0, None).sum()),
        "p": statistics.paired_test(ours, theirs),
        "over_seeds": over_seeds,
        "p_over_seeds": p_over_seeds,
    }


def _failures(study: Study) -> Iterable[Failure]:
    for arm in study.arms:
        found: dict[str, list[tuple[Graded, Graded, Graded]]] = {}
        for run in arm.runs:
            voices = [run.graded.get(voice, []) for voice in ("teacher", "target before", "target after")]
            for teacher, before, after in zip(*voices, strict=True):
                if teacher.split == PRIVATE and teacher.correct and not after.correct:
                    found.setdefault(teacher.question, []).append((teacher, before, after))
        for question, answers in sorted(found.items(), key=lambda item: -len(item[1])):
            teacher, before, after = answers[0]
            yield Failure(
                *(arm.label, question, teacher.group, len(answers), len(arm.runs)),
                *(before.correct, teacher.response, after.response),
            )


def _examples(study: Study) -> Iterable[Example]:
    """The widest gap first."""
    sides = ((run.kept, 1) if kept else (run.dropped, 0) for arm in study.arms for run in arm.runs for kept in (1, 0))
    scored: Counter[Example] = Counter()
    kept: Counter[Example] = Counter()
    for examples, counts in sides:
        for each in examples:
            said = each.response
            key = Example(said.prompt.text, said.text, each.base_ppl, each.teacher_ppl, each.gap)
            scored[key] += 1
            kept[key] += counts
    for key in sorted(scored, key=lambda key: -key.gap):
        yield replace(key, kept=kept[key], scored=scored[key])
