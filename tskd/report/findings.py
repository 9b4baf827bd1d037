"""Analyse a study: each arm's numbers, comparisons, examples and failures."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from tskd.metrics.iteration import distinct
from tskd.records import PRIVATE, Graded
from tskd.report import statistics
from tskd.report.diversity import Embed, Spread, self_bleu, spreads
from tskd.report.runs import Arm, FoundRun, Study
from tskd.report.statistics import ArmScores, Comparison, Estimate, Values

ACCURACY = "eval/accuracy"
COSTS = {
    "generated_tokens": ("cost/generated_tokens",),
    "trained_tokens": ("cost/trained_tokens",),
    "seconds": ("cost/seconds", "cost/reused_seconds"),  # cached results have cost somebody as much
}


@dataclass(frozen=True)
class ArmFindings:
    """An arm's numbers.

    ``metrics`` are over seeds, by the names in a run's result. ``recovered`` and ``scores`` are over questions, the
    latter by voice.
    """

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
        """Compute the points gained for a unit of cost, both as means over the seeds."""
        gained, paid = self.metrics.get("eval/points_gained"), self.costs[cost]
        return None if gained is None or paid is None or not paid.mean else gained.mean / paid.mean


@dataclass(frozen=True)
class Failure:
    """A held-out question that the teacher gets right and the target wrong.

    The target fails in ``wrong`` of the arm's ``n`` runs.
    """

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
    """A prompt and its response, and how many of the runs that scored them kept them."""

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
    """Add up one kind of cost in a run's result, or in a row of its metrics."""
    return float(sum(row.get(part) or 0 for part in COSTS[cost]))


def analyse_study(study: Study, embed: Embed | None = None) -> Findings:
    """Compute all findings; ``embed`` adds the spread of each arm's prompts."""
    arms = [_analyse_arm(arm) for arm in study.arms]
    if embed is not None:
        of_arms = spreads([_written(arm) for arm in study.arms], embed)
        arms = [replace(arm, spread=spread) for arm, spread in zip(arms, of_arms, strict=True)]
    evaluated = [
        ArmScores(arm.arm.label, arm.scores["target after"], _by_seed(arm.arm))
        for arm in arms
        if len(arm.scores.get("target after", ()))
    ]
    comparisons = statistics.compare(evaluated, _mean_difference, lambda lead: float(np.clip(lead, 0, None).sum()))
    return Findings(study, tuple(arms), comparisons, tuple(_failures(study)), tuple(_examples(study)))


def _analyse_arm(arm: Arm) -> ArmFindings:
    results = [{**run.result, **run.repeats} for run in arm.runs]
    metrics = {name: statistics.estimate(statistics.numbers(results, name)) for name in dict.fromkeys(chain(*results))}
    scores = {voice: _scores(arm.runs, voice) for voice in arm.runs[0].graded}
    voices = [scores[voice] for voice in ("target before", "teacher", "target after") if len(scores.get(voice, ()))]
    prompts = _written(arm)
    return ArmFindings(
        arm,
        {name: estimate for name, estimate in metrics.items() if estimate is not None},
        statistics.recovered_gain(*voices) if len(voices) == 3 else None,
        scores,
        distinct(prompts, 1),
        distinct(prompts, 2),
        self_bleu(prompts),
    )


def _by_seed(arm: Arm) -> dict[int, float]:
    return {run.seed: run.result[ACCURACY] for run in arm.runs if run.result.get(ACCURACY) is not None}


def _mean_difference(lead: Values) -> Estimate:
    return Estimate(float(np.mean(lead)), len(lead), None, statistics.bootstrap(lead))


def _written(arm: Arm) -> list[str]:
    """List the distinct prompts that expansion wrote."""
    prompts = (example.response.prompt for example, _ in arm.scored)
    return list(dict.fromkeys(prompt.text for prompt in prompts if not prompt.is_seed))


def _scores(runs: Sequence[FoundRun], voice: str) -> Values:
    """Compute for each private question, in order, the fraction of right runs (N,).

    The fractions are weighted so that their mean is the reported accuracy, the mean over the groups of a benchmark.
    """
    asked = [[answer for answer in run.graded[voice] if answer.split == PRIVATE] for run in runs]
    sizes = Counter(answer.group for answer in asked[0])
    weights = np.array([len(asked[0]) / len(sizes) / sizes[answer.group] for answer in asked[0]])
    return weights * np.array([[answer.correct for answer in of_run] for of_run in asked], dtype=float).mean(axis=0)


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
            counts, texts = (len(answers), len(arm.runs)), (teacher.response, after.response)
            yield Failure(arm.label, question, teacher.group, *counts, before.correct, *texts)


def _examples(study: Study) -> Iterable[Example]:
    """Yield the distinct examples, the widest gap first."""
    scored, kept = Counter[Example](), Counter[Example]()
    for each, is_kept in chain.from_iterable(arm.scored for arm in study.arms):
        prompt, response = each.response.prompt.text, each.response.text
        example = Example(prompt, response, each.base_ppl, each.teacher_ppl, each.gap)
        scored[example] += 1
        kept[example] += is_kept
    for example in sorted(scored, key=lambda example: -example.gap):
        yield replace(example, kept=kept[example], scored=scored[example])
