"""Choose the tables of a report and what is in them."""

from collections.abc import Iterable, Sequence

from tskd.report import means
from tskd.report.findings import COSTS, ArmFindings, Example, Failure, Findings
from tskd.report.statistics import Comparison
from tskd.report.table_writer import Column, Table, Value, columns

ALPHA = 0.05
ACCURACIES = ("target before", "teacher", "target after")
SELECTION = {
    "prompts/new": Column("new prompts"),
    "select/threshold": Column("threshold", 2),
    "select/kept": Column("kept"),
    "select/kept_fraction": Column("kept, %", 1, 100),
    "select/precision": Column("precision, %", 1, 100),
    "select/recall": Column("recall, %", 1, 100),
    "audit/prompts": Column("prompts that repeat, %", 1, 100),
    "audit/responses": Column("responses that repeat, %", 1, 100),
}


def tables_of_findings(found: Findings) -> list[Table]:
    """Make the tables that hold numbers alone, without prompts and answers."""
    n = found.study.num_questions
    caption = (
        f"Target after, first minus second, in points, on the same {n} private questions: [95 % paired bootstrap "
        "interval] over questions; McNemar's exact test with one seed each, with several the sign-flip permutation "
        f"test of which it is a case; Holm over the {_number_of_pairs(found.comparisons, len(found.arms))}. These are "
        "about these very runs. About the settings, over the seeds that both have: mean [95 % t interval], paired t "
        "test, not corrected."
    )
    ahead = columns("only first right", "only second right", digits=1)
    compared = _comparisons("comparisons", caption, ahead, found.comparisons)
    return [_results(found), _selection(found), _cost(found), *compared]


def tables_of_means(found: means.Means) -> list[Table]:
    """Make the rows that papers report, and compare the arms."""
    heads = (*columns("arm", "seeds"), *columns(*ACCURACIES, digits=1, factor=100), Column("points gained", 1))
    rows = [(arm.label, len(arm.of_seeds), *map(arm.metrics.get, means.METRICS)) for arm in found.arms]
    n = len(found.subsets)
    caption = (
        f"Accuracy, in points, as the mean over {n} subsets of {found.benchmark}, each of which "
        "counts as much: mean ± standard deviation [95 % t interval] over the seeds that have them all. The interval "
        "tells what other seeds would give on these very subsets."
    )
    of_pairs = (
        f"Target after, first minus second, in points, paired by the {n} subsets: mean ± standard deviation [95 % t "
        f"interval] over subsets, on how many each is higher, the sign-flip permutation test (of {n} subsets no p is "
        f"below {2 / 2**n:.2g}), and Holm over the {_number_of_pairs(found.comparisons, len(found.arms))}. Over the "
        f"seeds that both have: mean [95 % t interval] of the difference of means, paired t test, not corrected."
    )
    compared = _comparisons("mean_comparisons", of_pairs, columns("first higher", "second higher"), found.comparisons)
    return [Table("means", caption, heads, rows), *compared]


def _results(found: Findings) -> Table:
    heads = (
        *columns("arm", "seeds"),
        *columns(*ACCURACIES, "general after", digits=1, factor=100),
        *(Column("points gained", 1), Column("recovered gain, %", 1, 100)),
    )
    names = ("target_accuracy", "teacher_accuracy", "accuracy", "general_accuracy", "points_gained")
    rows = [
        (arm.arm.label, len(arm.arm.runs), *(arm.metrics.get(f"eval/{name}") for name in names), arm.recovered)
        for arm in found.arms
    ]
    caption = (
        f"Accuracy on {found.study.num_questions} private held-out questions, in points: mean ± standard deviation "
        f"[95 % t interval] over seeds. Recovered gain: [95 % bootstrap interval] over questions, where the teacher "
        f"leads by two standard errors."
    )
    return Table("results", caption, heads, rows)


def _selection(found: Findings) -> Table:
    measured = [name for name in SELECTION if any(name in arm.metrics for arm in found.arms)]
    spread = next((arm.spread for arm in found.arms if arm.spread), None)
    embedded = (
        f"; Vendi score (from 1 to n) and distance of n = {spread.n}, embedded by {spread.model}" if spread else ""
    )
    heads = [Column("arm"), *(SELECTION[name] for name in measured)]
    heads += [*columns("distinct-1", "distinct-2", digits=3), Column("self-BLEU", 1)]
    heads += [Column("Vendi score", 1), Column("mean cosine distance", 3)] if spread else []

    def row(arm: ArmFindings) -> list[Value]:
        words = (arm.distinct_1, arm.distinct_2, arm.self_bleu)
        embeddings = (arm.spread.vendi, arm.spread.distance) if arm.spread else (None, None)
        return [arm.arm.label, *map(arm.metrics.get, measured), *words, *(embeddings if spread else ())]

    caption = (
        "What was written and what was kept: mean ± standard deviation [95 % t interval] over seeds; the diversity of "
        f"all prompts that were written (self-BLEU from 0 to 100, high means alike{embedded}). "
        "To repeat is to have 8 words in a row of seeds or private text (`tskd.audit`)."
    )
    return Table("selection", caption, heads, [row(arm) for arm in found.arms])


def _cost(found: Findings) -> Table:
    heads = (
        *columns("arm", "tokens generated", "tokens trained on", "seconds"),
        *columns("points per 1000 tokens generated", "points per 1000 tokens trained on", digits=2, factor=1000),
        Column("points per minute", 2, 60),
    )
    rows = [(arm.arm.label, *map(arm.costs.get, COSTS), *map(arm.gained_per, COSTS)) for arm in found.arms]
    caption = (
        "What it cost: mean ± standard deviation [95 % t interval] over seeds, and points gained for it. What was "
        "taken from the store counts as if it had been computed."
    )
    return Table("cost", caption, heads, rows)


def _comparisons(name: str, caption: str, ahead: Sequence[Column], comparisons: Sequence[Comparison]) -> list[Table]:
    """Make the table of comparisons, if there are any.

    ``ahead`` heads the counts of items on which each arm leads.
    """
    heads = (
        *(*columns("first", "second"), Column("difference", 1, 100), *ahead),
        *(*columns("p", "p (Holm)", digits=4), Column("differ")),
        *(Column("difference over seeds", 1, 100), Column("p over seeds", 4)),
    )
    rows = [
        (
            *(each.first, each.second, each.difference, each.first_ahead, each.second_ahead, each.p, each.p_holm),
            *("yes" if each.p_holm <= ALPHA else "not shown", each.over_seeds, each.p_over_seeds),
        )
        for each in comparisons
    ]
    return [Table(name, caption, heads, rows)] if rows else []


def _number_of_pairs(comparisons: Sequence[Comparison], num_arms: int) -> str:
    firsts = {each.first for each in comparisons}
    few = f" with {firsts.pop()}" if num_arms > 2 and len(firsts) == 1 else ""  # too many arms for all pairs
    return f"{len(comparisons)} pairs{few}"


def failures_table(failures: Iterable[Failure]) -> Table:
    """List failures; this table holds texts."""
    heads = columns("arm", "question", "group", "runs wrong", "runs", "known before", "teacher", "target")
    rows = [
        (f.arm, f.question, f.group, f.wrong, f.n, "yes" if f.known_before else "no", f.teacher, f.target)
        for f in failures
    ]
    caption = "Held-out questions that the teacher gets right and the tuned target does not, by the question's id."
    return Table("failures", caption, heads, rows)


def examples_table(examples: Iterable[Example]) -> Table:
    """List examples; this table holds texts."""
    heads = (
        *columns("gap", "base perplexity", "teacher perplexity", digits=3),
        *columns("runs that kept it", "runs that scored it", "prompt", "response"),
    )
    rows = [(e.gap, e.base_ppl, e.teacher_ppl, e.kept, e.scored, e.prompt, e.response) for e in examples]
    caption = "Every prompt that was scored, the widest gap first, and how many runs kept it."
    return Table("examples", caption, heads, rows)
