"""Tables of what was found, and their forms: Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import TypeAlias

from tskd.report import means
from tskd.report.findings import COSTS, ArmFindings, Comparison, Findings
from tskd.report.statistics import Estimate

Value: TypeAlias = Estimate | float | int | str | None
ALPHA = 0.05
HEAD, LABEL = 12, 20  # characters in a line of a head and of a label, in LaTeX


@dataclass(frozen=True)
class Column:
    """``digits`` after the point; numbers are multiplied by ``factor``, 100 for points of fractions."""

    name: str
    digits: int = 0
    factor: float = 1


@dataclass(frozen=True)
class Table:
    """``name`` is the file's; ``caption`` says what the intervals are, and n."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()


def of(found: Findings) -> list[Table]:
    """The tables that hold numbers alone: nothing of prompts and answers is in them."""
    return [_results(found), _selection(found), _cost(found), *([_comparisons(found)] if found.comparisons else [])]


def of_means(found: means.Means) -> list[Table]:
    """The rows that papers report, and the arms against each other."""
    return [_means(found), *([_mean_comparisons(found)] if found.comparisons else [])]


def _results(found: Findings) -> Table:
    names = ("eval/target_accuracy", "eval/teacher_accuracy", "eval/accuracy", "eval/general_accuracy")
    heads = ("target before", "teacher", "target after", "general after")
    columns = (
        Column("arm"),
        Column("seeds"),
        *(Column(head, 1, 100) for head in heads),
        Column("points gained", 1),
        Column("recovered gain, %", 1, 100),
    )
    rows = (
        (arm.arm.label, len(arm.arm.runs), *map(arm.metrics.get, (*names, "eval/points_gained")), arm.recovered)
        for arm in found.arms
    )
    caption = (
        f"Accuracy on {found.study.num_questions} private held-out questions, in points: mean ± standard deviation "
        f"[95 % t interval] over seeds. Recovered gain: [95 % bootstrap interval] over questions, where the teacher "
        f"leads by two standard errors."
    )
    return Table("results", caption, columns, tuple(rows))


def _selection(found: Findings) -> Table:
    names = {
        "prompts/new": Column("new prompts"),
        "select/threshold": Column("threshold", 2),
        "select/kept": Column("kept"),
        "select/kept_fraction": Column("kept, %", 1, 100),
        "select/precision": Column("precision, %", 1, 100),
        "select/recall": Column("recall, %", 1, 100),
        "audit/prompts": Column("prompts that repeat, %", 1, 100),
        "audit/responses": Column("responses that repeat, %", 1, 100),
    }
    measured = [name for name in names if any(name in arm.metrics for arm in found.arms)]
    spread = next((arm.spread for arm in found.arms if arm.spread), None)
    columns = (
        Column("arm"),
        *(names[name] for name in measured),
        Column("distinct-1", 3),
        Column("distinct-2", 3),
        Column("self-BLEU", 1),
        *([Column("Vendi score", 1), Column("mean cosine distance", 3)] if spread else []),
    )
    rows = (
        (
            arm.arm.label,
            *(arm.metrics.get(name) for name in measured),
            *(arm.distinct_1, arm.distinct_2, arm.self_bleu),
            *((arm.spread and arm.spread.vendi, arm.spread and arm.spread.distance) if spread else ()),
        )
        for arm in found.arms
    )
    embedded = (
        f"; Vendi score (from 1 to n) and distance of n = {spread.n}, embedded by {spread.model}" if spread else ""
    )
    caption = (
        "What was written and what was kept: mean ± standard deviation [95 % t interval] over seeds; the diversity of "
        f"all prompts that were written (self-BLEU from 0 to 100, high means alike{embedded}). "
        "To repeat is to have 8 words in a row of seeds or private text (`tskd.audit`)."
    )
    return Table("selection", caption, columns, tuple(rows))


def _cost(found: Findings) -> Table:
    columns = (
        Column("arm"),
        Column("tokens generated"),
        Column("tokens trained on"),
        Column("seconds"),
        Column("points per 1000 tokens generated", 2, 1000),
        Column("points per 1000 tokens trained on", 2, 1000),
        Column("points per minute", 2, 60),
    )

    def row(arm: ArmFindings) -> tuple[Value, ...]:
        return (arm.arm.label, *(arm.costs.get(cost) for cost in COSTS), *map(arm.gained_per, COSTS))

    caption = (
        "What it cost: mean ± standard deviation [95 % t interval] over seeds, and points gained for it. What was "
        "taken from the store counts as if it had been computed."
    )
    return Table("cost", caption, columns, tuple(map(row, found.arms)))


def _means(found: means.Means) -> Table:
    heads = (
        *(Column(head, 1, 100) for head in ("target before", "teacher", "target after")),
        Column("points gained", 1),
    )
    rows = ((arm.label, len(arm.of_seeds), *map(arm.metrics.get, means.METRICS)) for arm in found.arms)
    caption = (
        f"Accuracy, in points, as the mean over {len(found.subsets)} subsets of {found.benchmark}, each of which "
        "counts as much: mean ± standard deviation [95 % t interval] over the seeds that have them all. The interval "
        "tells what other seeds would give on these very subsets."
    )
    return Table("means", caption, (Column("arm"), Column("seeds"), *heads), tuple(rows))


def _mean_comparisons(found: means.Means) -> Table:
    columns = (
        *(Column("first"), Column("second"), Column("difference", 1, 100)),
        *(Column("first higher"), Column("second higher"), Column("p", 4), Column("p (Holm)", 4), Column("differ")),
        *(Column("difference over seeds", 1, 100), Column("p over seeds", 4)),
    )
    rows = (
        (
            *(each.first, each.second, each.difference, each.first_higher, each.second_higher),
            *(each.p, each.p_holm, _verdict(each.p_holm), each.over_seeds, each.p_over_seeds),
        )
        for each in found.comparisons
    )
    n = len(found.subsets)
    caption = (
        f"Target after, first minus second, in points, paired by the {n} subsets: mean ± standard deviation [95 % t "
        f"interval] over subsets, on how many each is higher, the sign-flip permutation test (of {n} subsets no p is "
        f"below {2 / 2**n:.2g}), and Holm over the {_number_of_pairs(found.comparisons, len(found.arms))}. Over the "
        f"seeds that both have: mean [95 % t interval] of the difference of means, paired t test, not corrected."
    )
    return Table("mean_comparisons", caption, columns, tuple(rows))


def _verdict(p: float) -> str:
    return "yes" if p <= ALPHA else "not shown"


def _number_of_pairs(comparisons: Sequence[Comparison | means.Comparison], num_arms: int) -> str:
    firsts = {each.first for each in comparisons}
    few = f" with {firsts.pop()}" if num_arms > 2 and len(firsts) == 1 else ""  # too many arms for all pairs
    return f"{len(comparisons)} pairs{few}"


def _comparisons(found: Findings) -> Table:
    columns = (
        Column("first"),
        Column("second"),
        Column("difference", 1, 100),
        Column("only first right", 1),
        Column("only second right", 1),
        Column("p", 4),
        Column("p (Holm)", 4),
        Column("differ"),
        Column("difference over seeds", 1, 100),
        Column("p over seeds", 4),
    )
    n = found.study.num_questions
    rows = (
        (
            *(each.first, each.second),
            Estimate(each.difference, n, None, each.interval),
            *(each.only_first, each.only_second, each.p, each.p_holm),
            _verdict(each.p_holm),
            *(each.over_seeds, each.p_over_seeds),
        )
        for each in found.comparisons
    )
    caption = (
        f"Target after, first minus second, in points, on the same {n} private questions: [95 % paired bootstrap "
        "interval] over questions; McNemar's exact test with one seed each, with several the sign-flip permutation "
        f"test of which it is a case; Holm over the {_number_of_pairs(found.comparisons, len(found.arms))}. These are "
        "about these very runs. About the settings, over the seeds that both have: mean [95 % t interval], paired t "
        "test, not corrected."
    )
    return Table("comparisons", caption, columns, tuple(rows))


def failures(found: Findings) -> Table:
    columns = ("arm", "question", "group", "runs wrong", "runs", "known before", "teacher", "target")
    rows = (
        (f.arm, f.question, f.group, f.wrong, f.n, "yes" if f.known_before else "no", f.teacher, f.target)
        for f in found.failures
    )
    caption = "Held-out questions that the teacher gets right and the tuned target does not, by the question's id."
    return Table("failures", caption, tuple(map(Column, columns)), tuple(rows))


def examples(found: Findings) -> Table:
    columns = (
        *(Column("gap", 3), Column("base perplexity", 3), Column("teacher perplexity", 3)),
        *map(Column, ("runs that kept it", "runs that scored it", "prompt", "response")),
    )
    rows = ((e.gap, e.base_ppl, e.teacher_ppl, e.kept, e.scored, e.prompt, e.response) for e in found.examples)
    caption = "Every prompt that was scored, the widest gap first, and how many runs kept it."
    return Table("examples", caption, columns, tuple(rows))


def to_csv(table: Table) -> str:
    """Whole numbers and texts; an estimate takes five columns."""
    wide = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("", " sd", " low", " high", " n")
    heads = [
        [column.name + part for part in parts] if is_wide else [column.name]
        for column, is_wide in zip(table.columns, wide, strict=True)
    ]
    writer.writerow([head for of_column in heads for head in of_column])
    for row in table.rows:
        values: list[float | int | str | None] = []
        for value, column, is_wide in zip(row, table.columns, wide, strict=True):
            values += _parts(value, column) if is_wide else [_scaled(value, column)]
        writer.writerow(values)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    heads = " | ".join(column.name for column in table.columns)
    marks = "|".join("---" if is_text(table, i) else "---:" for i in range(len(table.columns)))
    lines = [f"| {heads} |", f"|{marks}|"]
    for row in cells(table):
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    return f"{table.caption}\n\n" + "\n".join(lines)


def to_latex(table: Table) -> str:
    """A ``table*`` that needs the packages booktabs and graphicx: where it is wider than the text, it is made smaller.

    Heads and labels are broken, and intervals stand below their means, so that it seldom is on a page of two columns.
    """
    kinds = "".join("l" if is_text(table, i) else "r" for i in range(len(table.columns)))
    caption = re.sub("`(.+?)`", r"\\texttt{\1}", _tex(table.caption))
    heads = [wrap(column.name, HEAD) for column in table.columns]
    deepest = max(map(len, heads))
    rows = [[_broken(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows]
    return "\n".join(
        [
            r"\begin{table*}\centering\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{6pt}",
            rf"\caption{{{caption}}}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{kinds}}}\toprule",
            _stacked([[""] * (deepest - len(head)) + head for head in heads]) + r" \midrule",
            "\n\\addlinespace\n".join(map(_stacked, rows)),
            r"\bottomrule\end{tabular}}\end{table*}",
        ]
    )


def _broken(value: Value, column: Column) -> list[str]:
    """The lines of a cell of LaTeX."""
    shown = _shown(value, column)
    if isinstance(value, str):
        return wrap(shown, LABEL, break_long_words=False, break_on_hyphens=False)
    mean, has_interval, interval = shown.replace("-", "−").partition(" [")
    return [mean, f"[{interval}"] if has_interval else [mean]


def _stacked(row: Sequence[Sequence[str]]) -> str:
    """A row of LaTeX, from the lines of its cells."""
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in zip_longest(*row, fillvalue="")]
    # Or what ends the line before would take it for its argument.
    return "\n".join("{}" + line if line.startswith(("[", "*")) else line for line in lines)


def cells(table: Table) -> list[list[str]]:
    """Each row as it is shown to people."""
    return [[_shown(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows]


def number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def _shown(value: Value, column: Column) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Estimate):
        scaled = value * column.factor
        spread = "" if scaled.sd is None else f" ± {number(scaled.sd, column.digits)}"
        low, high = scaled.interval or (None, None)
        between = (
            "" if low is None or high is None else f" [{number(low, column.digits)}, {number(high, column.digits)}]"
        )
        return number(scaled.mean, column.digits) + spread + between
    return number(column.factor * value, column.digits)


def _scaled(value: float | int | str | Estimate | None, column: Column) -> float | int | str | None:
    if isinstance(value, Estimate):
        return column.factor * value.mean
    return value if value is None or isinstance(value, str) or column.factor == 1 else column.factor * value


def _parts(value: Value, column: Column) -> list[float | int | str | None]:
    if not isinstance(value, Estimate):
        return [_scaled(value, column), None, None, None, None]
    scaled = value * column.factor
    return [scaled.mean, scaled.sd, *(scaled.interval or (None, None)), scaled.n]


def is_text(table: Table, place: int) -> bool:
    return any(isinstance(row[place], str) for row in table.rows)


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {each: f"\\{each}" for each in "&%$#_{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other signs in TeX's old fonts
    special |= {"±": r"$\pm$", "−": "$-$", "–": "--", "→": r"$\to$"}
    return "".join(special.get(character, character) for character in text)
