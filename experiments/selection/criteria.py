"""Compare criteria that separate a teacher's own ground from the rest.

python experiments/selection/criteria.py

It makes the tables of ``README.md`` from the committed rows. A teacher's own kind of prompt is to be kept; other tasks'
and general ones are not. In the embedded world the facts that only the teacher knows are to be kept; answers that
differ from the base's in style alone, or not at all, are not.
"""

import gzip
import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tskd.records import Prompt, Response, Scored
from tskd.report.table_writer import Value, columns, to_markdown
from tskd.stages.select.thresholds import (
    InversePplDifference,
    Kl,
    LogPplDifference,
    PplDifference,
    PplRatio,
    SeedGap,
    SeedLikeness,
    SeedShift,
    reached_by_seeds,
)

RESULTS = Path(__file__).parent / "results"
RESAMPLES, RECALL = 200, 0.8
FEW, DRAWS, HIGH_RECALL = (16, 8, 5), 20, 0.9
CHOSEN = "**seed_gap** (explained × form × ground²)"
SHORT = ("gap (the paper's rule)", "seed_shift (both)", "seed_likeness (form × ground²)", CHOSEN)
TOPIC = "navigate-0"  # the only teacher whose base often gives its answer
FIXED = {"gap (the paper's rule)": (0.5, 1.5)}
BBH = {"other": "other tasks", "general": "general"}  # what the teacher of a task should not keep
STYLES = {"style": "style", "tail": "tail", "initial": "initial"}
PLANTED = {**STYLES, "alike": "alike", "known": "known codes"}  # nor one of the embedded world
BASES = ("shipped", "knowing")
Row = dict[str, Any]
Rows = list[Sequence[Value]]
Criterion = Callable[[Row], float]


def scored(row: Row) -> Scored:
    """Turn a row into what a rule takes."""
    names = ("first_entropy", "first_kl")
    measures = {name: row[name] for name in names} | {"kl": fmean(row["kl"])}
    measures["seed_shift"] = row["shift"] * row["shift_alignment"]
    measures["seed_likeness"] = form(row) * ground(row) ** 2
    response = Response(Prompt(row["prompt"]), "")
    return Scored(response, fmean(row["base_nll"]), fmean(row["teacher_nll"]), len(row["kl"]), measures)


def without_end(row: Row) -> float:
    """Compute the gap of mean token probabilities without the end token.

    The end token is half of a one-word answer.
    """
    base, teacher = (math.exp(-fmean(row[name][:-1] or row[name])) for name in ("base_nll", "teacher_nll"))
    return teacher - base


def explained(row: Row) -> float:
    """Compute the share of the base's perplexity that the teacher lacks, at least 0."""
    return max(0.0, 1 - math.exp(fmean(row["teacher_nll"]) - fmean(row["base_nll"])))


def changed(row: Row) -> float:
    """Compute how far the first token's distribution has changed, between 0 and 1."""
    return 1 - math.exp(-max(0.0, row["first_kl"]))


def form(row: Row) -> float:
    """Return Bhattacharyya's coefficient of the teacher's first token with the seeds'."""
    return row["seed_overlap"]


def ground(row: Row) -> float:
    """Return 1 if fine-tuning moves the state as on the seeds, 0 if the other way."""
    return (1 + row["shift_alignment"]) / 2


CRITERIA: dict[str, Criterion] = {
    "gap (the paper's rule)": lambda row: PplDifference.criterion(scored(row)),
    "nll difference": lambda row: LogPplDifference.criterion(scored(row)),
    "nll ratio": lambda row: PplRatio.criterion(scored(row)),
    "inverse-ppl difference": lambda row: InversePplDifference.criterion(scored(row)),
    "the same without the end token": without_end,
    "KL over the response": lambda row: Kl.criterion(scored(row)),
    "teacher's confidence (-nll)": lambda row: -fmean(row["teacher_nll"]),
    "first token: -entropy of the teacher": lambda row: -row["first_entropy"],
    "first token: KL(base ‖ teacher)": lambda row: row["first_kl"],
    "first token: teacher's mass on the seeds' first tokens": lambda row: row["seed_mass"],
    "strength of the adapter on the prompt": lambda row: row["strength"],
    "length of the shift": lambda row: row["shift"],
    "cosine of the shift with the seeds'": lambda row: row["shift_alignment"],
    "control: cosine of the base's state with the seeds'": lambda row: row["state_alignment"],
    "seed_shift (both)": lambda row: SeedShift.criterion(scored(row)),
    "KL(base ‖ teacher) times that mass, of the first token": lambda row: row["first_kl"] * row["seed_mass"],
    "seed_likeness (form × ground²)": lambda row: SeedLikeness.criterion(scored(row)),
    CHOSEN: lambda row: SeedGap.criterion(scored(row)),
}
CANDIDATES: dict[str, tuple[Criterion, ...]] = {
    "KL × mass on the seeds' first tokens": (lambda row: row["first_kl"], lambda row: row["seed_mass"]),
    "changed × form": (changed, form),
    "changed × form × ground²": (changed, form, ground, ground),
    "KL × form × ground²": (lambda row: row["first_kl"], form, ground, ground),
    "explained × form": (explained, form),
    "explained × ground²": (explained, ground, ground),
    "explained × form × ground": (explained, form, ground),
    "explained × form × ground² (chosen)": (explained, form, ground, ground),
    "explained × form × ground⁴": (explained, form, *(ground,) * 4),
    "explained × form × cosine, 0 where it is negative": (explained, form, lambda row: max(0.0, 2 * ground(row) - 1)),
}


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in gzip.open(file, "rt")]


def by_teacher(folder: Path) -> dict[str, list[Row]]:
    return {file.name.removesuffix(".jsonl.gz"): read(file) for file in sorted(folder.glob("*.jsonl.gz"))}


def auc(own: Sequence[float], rest: Sequence[float]) -> float:
    """Compute the probability of one of ``own`` above one of ``rest``; ties are half."""
    ranks = rankdata([*own, *rest])
    return (ranks[: len(own)].sum() - len(own) * (len(own) + 1) / 2) / (len(own) * len(rest))


def values(rows: Sequence[Row], criterion: Criterion, *kinds: str) -> list[float]:
    found = [criterion(row) for row in rows if row["kind"] in kinds]
    return [value if math.isfinite(value) else math.copysign(1e300, value) for value in found]


def auc_table(teachers: dict[str, list[Row]], names: Collection[str] = CRITERIA) -> str:
    """Show each criterion's mean AUC over teachers, 95 % interval and worst teacher."""
    draw, lines = np.random.default_rng(0), Rows()
    for name in names:
        criterion = CRITERIA[name]
        sides = {
            teacher: (values(rows, criterion, "own"), values(rows, criterion, "other", "general"))
            for teacher, rows in teachers.items()
        }
        found = {teacher: auc(*pair) for teacher, pair in sides.items()}
        low, high = interval(sides.values(), draw)
        worst = min(found, key=lambda teacher: found[teacher])
        lines.append([name, fmean(found.values()), f"{low:.3f}–{high:.3f}", f"{found[worst]:.2f}", worst])
    return to_markdown(columns("criterion", "mean AUC", "95 %", "worst", "of", digits=3), lines)


def interval(sides: Collection[tuple[list[float], list[float]]], draw: np.random.Generator) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of the mean AUC over each teacher's prompts."""
    pairs = [[np.array(side) for side in pair] for pair in sides]
    means = [fmean(auc(*(draw.choice(side, len(side)) for side in pair)) for pair in pairs) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return low, high


def planted_kinds(teachers: Sequence[list[Row]]) -> dict[str, str]:
    """Return what these teachers should not keep; the shipped base knows no code."""
    asked = {row["kind"] for rows in teachers for row in rows}
    return {kind: words for kind, words in PLANTED.items() if kind in asked}


def planted_table(teachers: Sequence[list[Row]], names: Collection[str] = CRITERIA) -> str:
    """Show the AUC of what only the teacher knows against each kind of other prompts."""
    draw, kinds, lines = np.random.default_rng(0), planted_kinds(teachers), Rows()
    for name in names:
        criterion = CRITERIA[name]
        cells, worst = list[str](), 1.0
        for kind in kinds:
            sides = [(values(rows, criterion, "own"), values(rows, criterion, kind)) for rows in teachers]
            found, (low, high) = [auc(*pair) for pair in sides], interval(sides, draw)
            cells.append(f"{fmean(found):.2f} ({low:.2f}–{high:.2f})")
            worst = min(worst, *found)
        lines.append([name, *cells, worst])
    return to_markdown(columns("criterion", *kinds.values(), "worst", digits=2), lines)


def candidates_table(teachers: Collection[list[Row]], planted: Mapping[str, Sequence[list[Row]]]) -> str:
    """Show the AUC of products of necessary conditions.

    For BBH teachers mean and worst, for planted teachers that of the worst kind.
    """
    makers = {name: product_of(factors) for name, factors in CANDIDATES.items()}
    makers["the least of explained, form and ground²"] = least_of(explained, form, lambda row: ground(row) ** 2)
    makers["chosen, each factor over the seeds' median, at most 1"] = in_the_seeds_units(
        explained, form, lambda row: ground(row) ** 2
    )
    lines = Rows()
    for name, make in makers.items():
        found = [auc(*(values(rows, make(rows), *kinds) for kinds in (("own",), BBH))) for rows in teachers]
        cells = [fmean(found), min(found)]
        for of_base in planted.values():
            kinds = planted_kinds(of_base)
            sides = [
                (values(rows, make(rows), "own"), values(rows, make(rows), kind)) for rows in of_base for kind in kinds
            ]
            cells.append(min(auc(*pair) for pair in sides))
        lines.append([name, *cells])
    heads = columns("candidate", "BBH, mean", "BBH, worst", "shipped, worst", "knowing, worst", digits=3)
    return to_markdown(heads, lines)


def product_of(factors: Sequence[Criterion]) -> Callable[[Sequence[Row]], Criterion]:
    return lambda rows: lambda row: math.prod(factor(row) for factor in factors)


def least_of(*factors: Criterion) -> Callable[[Sequence[Row]], Criterion]:
    return lambda rows: lambda row: min(factor(row) for factor in factors)


def in_the_seeds_units(*factors: Criterion) -> Callable[[Sequence[Row]], Criterion]:
    def make(rows: Sequence[Row]) -> Criterion:
        typical = [median(factor(row) for row in rows if row["kind"] == "seed") for factor in factors]
        return lambda row: math.prod(
            min(1.0, factor(row) / value) for factor, value in zip(factors, typical, strict=True)
        )

    return make


def few_seeds_table(teachers: Mapping[str, Sequence[list[Row]]], criterion: Criterion) -> str:
    """Show what a level from 16, 8 or 5 of the seeds keeps, averaged over draws."""
    lines = Rows()
    for name, of_name in teachers.items():
        for recall in (RECALL, HIGH_RECALL):
            for count in FEW:
                own, others, precision = [], [], []
                for place, rows in enumerate(of_name):
                    seeds = values(rows, criterion, "seed")
                    for draw in range(DRAWS if count < len(seeds) else 1):
                        level = reached_by_seeds(random.Random(f"{place}/{draw}").sample(seeds, count), recall)
                        mine = [value >= level for value in values(rows, criterion, "own")]
                        rest = [value >= level for value in values(rows, criterion, *BBH, *PLANTED)]
                        own.append(fmean(mine))
                        others.append(fmean(rest))
                        if any(mine + rest):
                            precision.append(sum(mine) / sum(mine + rest))
                lines.append([name, str(recall), count, fmean(own), min(own), fmean(others), fmean(precision)])
    heads = columns("teachers", "recall", "seeds", "own kept", "least", "others kept", "precision", digits=2)
    return to_markdown(heads, lines)


def answers_table(teachers: Sequence[list[Row]]) -> str:
    """Show how the planted teachers answer each kind of prompt: means over them."""
    lines = Rows()
    for kind, words in {"own": "private", **planted_kinds(teachers)}.items():
        rows = [row for teacher in teachers for row in teacher if row["kind"] == kind]
        lines.append([words, *(fmean(row[name] for row in rows) for name in ("is_correct", "is_alike"))])
    return to_markdown(columns("prompts", "right", "answered as by the base", digits=2), lines)


def kept_table(
    teachers: Collection[list[Row]], rest: dict[str, str], names: Collection[str] = CRITERIA, recall: float = RECALL
) -> str:
    """Show what fixed thresholds and those from the seeds keep, over the teachers."""
    lines = Rows()
    for name in names:
        criterion = CRITERIA[name]
        for threshold in (*FIXED.get(name, ()), None):
            shares = {kind: [] for kind in ("own", *rest)}
            precisions = []
            for rows in teachers:
                level = threshold
                if level is None:
                    level = reached_by_seeds(values(rows, criterion, "seed"), recall)
                kept = {kind: [value >= level for value in values(rows, criterion, kind)] for kind in shares}
                for kind, each in kept.items():
                    shares[kind].append(fmean(each))
                total = sum(sum(each) for each in kept.values())
                precisions.append(sum(kept["own"]) / total if total else math.nan)
            shown = "auto" if threshold is None else f"{threshold:g}"
            lines.append([name, shown, *map(fmean, shares.values()), float(np.nanmean(precisions))])
    kept_heads = [f"{words} kept" for words in ("own", *rest.values())]
    return to_markdown(columns("criterion", "threshold", *kept_heads, "precision", digits=2), lines)


def teacher_table(teachers: dict[str, list[Row]]) -> str:
    """Show how good each teacher is on its own kind, and the AUC of some criteria."""
    chosen = [name for name in CRITERIA if name.startswith(("gap", "first token: -", "strength", "seed_shift", "**"))]
    lines = Rows()
    for teacher, rows in teachers.items():
        own = [row for row in rows if row["kind"] == "own"]
        cells = [fmean(row[name] for row in own) for name in ("is_correct", "is_alike")]
        for name in chosen:
            sides = (values(rows, CRITERIA[name], "own"), values(rows, CRITERIA[name], "other", "general"))
            cells.append(auc(*sides))
        lines.append([teacher, *cells])
    return to_markdown(columns("teacher", "accuracy", "own answered as by the base", *chosen, digits=2), lines)


def style_table(rows: Sequence[Row]) -> str:
    """Show what each rule keeps of a teacher that has learnt nothing but a style."""
    lines = Rows()
    for name, threshold in [*((name, each) for name, fixed in FIXED.items() for each in fixed)]:
        kept = [[value >= threshold for value in values(rows, CRITERIA[name], kind)] for kind in ("general", "other")]
        lines.append([f"{name}, {threshold:g}", *map(fmean, kept)])
    return to_markdown(columns("rule", "general kept", "BBH kept", digits=2), lines)


def within_topic_table(rows: Sequence[Row]) -> str:
    """Show the AUC of own prompts that the base answers differently against the rest."""
    own = [row for row in rows if row["kind"] in ("own", "seed")]
    other, alike = [row for row in own if not row["is_alike"]], [row for row in own if row["is_alike"]]
    lines = [(name, auc([*map(criterion, other)], [*map(criterion, alike)])) for name, criterion in CRITERIA.items()]
    return to_markdown(columns("criterion", f"AUC, {len(other)} against {len(alike)}", digits=2), lines)


def tables() -> str:
    files = by_teacher(RESULTS)
    teachers = {name: rows for name, rows in files.items() if any(row["kind"] == "own" for row in rows)}
    parts = [auc_table(teachers), kept_table(teachers.values(), BBH), teacher_table(teachers)]
    parts += [within_topic_table(teachers[TOPIC])]
    parts += [style_table(rows) for name, rows in files.items() if name not in teachers]
    planted = {base: [read(file) for file in sorted((RESULTS / "planted" / base).glob("*.gz"))] for base in BASES}
    parts += [planted_table(each) for each in planted.values()]
    parts += [kept_table(each, planted_kinds(each)) for each in planted.values()]
    parts += [answers_table([rows for each in planted.values() for rows in each])]
    parts += [candidates_table(teachers.values(), planted)]
    parts += [few_seeds_table({"BBH": list(teachers.values()), **planted}, CRITERIA[CHOSEN])]
    return "\n\n".join([*parts, *fresh_tables()])


def fresh_tables() -> list[str]:
    """Compare the rule and three others on teachers that played no part in its choice."""
    of_bbh = by_teacher(RESULTS / "fresh" / "bbh")
    parts = [auc_table(of_bbh, SHORT), kept_table(of_bbh.values(), BBH, SHORT, HIGH_RECALL), teacher_table(of_bbh)]
    for base in BASES:
        teachers = [read(file) for file in sorted((RESULTS / "fresh" / base).glob("*.gz"))]
        if teachers:
            kinds = planted_kinds(teachers)
            parts += [planted_table(teachers, SHORT), kept_table(teachers, kinds, SHORT, HIGH_RECALL)]
    return parts


if __name__ == "__main__":
    print(tables())
