"""Write a table of columns and rows as Markdown, LaTeX or CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import TypeAlias

from tskd.report.statistics import Estimate

Value: TypeAlias = Estimate | float | int | str | None
HEAD_WIDTH, LABEL_WIDTH = 12, 20  # characters in a line of a head and of a label, in LaTeX
CSV_PARTS = ("", " sd", " low", " high", " n")  # the columns that an estimate takes in a CSV file
TEX_SIGNS = {each: f"\\{each}" for each in "&%$#_{}"}
TEX_SIGNS |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX_SIGNS |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other signs in TeX's old fonts
TEX_SIGNS |= {"±": r"$\pm$", "−": "$-$", "–": "--", "→": r"$\to$"}


@dataclass(frozen=True)
class Column:
    """A head, digits after the point, and a factor: 100 turns fractions into points."""

    name: str
    digits: int = 0
    factor: float = 1

    def scale(self, value: Value) -> Value:
        """Multiply a number or an estimate by the factor; keep texts and ``None``."""
        return value if value is None or isinstance(value, str) or self.factor == 1 else value * self.factor

    def show(self, value: Value) -> str:
        """Format a value for people."""
        return format_value(self.scale(value), self.digits)


@dataclass(frozen=True)
class Table:
    """Columns, rows, the file's name, and a caption that names the intervals and n."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @property
    def is_text(self) -> list[bool]:
        """For each column, whether it holds texts rather than numbers."""
        return [any(isinstance(value, str) for value in values) for values in self._values]

    @property
    def is_estimate(self) -> list[bool]:
        """For each column, whether it holds estimates."""
        return [any(isinstance(value, Estimate) for value in values) for values in self._values]

    @property
    def _values(self) -> list[list[Value]]:
        return [[row[place] for row in self.rows] for place in range(len(self.columns))]


def columns(*names: str, digits: int = 0, factor: float = 1) -> tuple[Column, ...]:
    """Make columns that share their format."""
    return tuple(Column(name, digits, factor) for name in names)


def format_value(value: Value, digits: int) -> str:
    """Format a value for people: an estimate as ``mean ± sd [low, high]``.

    A whole number has no digits after the point.
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Estimate):
        spread = "" if value.sd is None else f" ± {format_value(value.sd, digits)}"
        ends = [format_value(end, digits) for end in value.interval or ()]
        return format_value(value.mean, digits) + spread + (f" [{', '.join(ends)}]" if ends else "")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def cells(columns: Sequence[Column], rows: Iterable[Sequence[Value]]) -> list[list[str]]:
    """Format each row for people."""
    return [[column.show(value) for column, value in zip(columns, row, strict=True)] for row in rows]


def to_markdown(
    columns: Sequence[Column], rows: Iterable[Sequence[Value]], is_text: Sequence[bool] | None = None
) -> str:
    """Write a Markdown table, without a line break at its end.

    Args:
        columns: The heads and formats.
        rows: The values, in the order of the columns.
        is_text: For each column, whether to align it left rather than right; ``None`` leaves that to the reader.
    """
    marks = ["---" if each else "---:" for each in is_text or [True] * len(columns)]
    lines = [f"| {' | '.join(column.name for column in columns)} |", f"|{'|'.join(marks)}|"]
    for row in cells(columns, rows):
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    return "\n".join(lines)


def to_csv(table: Table) -> str:
    """Write full numbers and texts; an estimate takes the columns ``CSV_PARTS``."""
    widths = [len(CSV_PARTS) if is_estimate else 1 for is_estimate in table.is_estimate]
    columns = list(zip(table.columns, widths, strict=True))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name + part for column, width in columns for part in CSV_PARTS[:width]])
    for row in table.rows:
        pairs = zip(row, columns, strict=True)
        writer.writerow([part for value, (column, width) in pairs for part in _csv_parts(column.scale(value))[:width]])
    return out.getvalue()


def _csv_parts(value: Value) -> list[float | int | str | None]:
    if isinstance(value, Estimate):
        return [value.mean, value.sd, *(value.interval or (None, None)), value.n]
    return [value, *[None] * (len(CSV_PARTS) - 1)]


def to_latex(table: Table) -> str:
    """Write a ``table*`` as wide as the text at most; needs booktabs and graphicx.

    Heads and labels are wrapped and intervals stand below their means, so that few tables need to shrink.
    """
    heads = [wrap(column.name, HEAD_WIDTH) for column in table.columns]
    deepest = max(map(len, heads))
    rows = [[_tex_cell(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows]
    return "\n".join(
        [
            r"\begin{table*}\centering\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{6pt}",
            r"\caption{" + re.sub("`(.+?)`", r"\\texttt{\1}", _tex(table.caption)) + "}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('l' if each else 'r' for each in table.is_text)}}}\toprule",
            _tex_row([[""] * (deepest - len(head)) + head for head in heads]) + r" \midrule",
            "\n\\addlinespace\n".join(map(_tex_row, rows)),
            r"\bottomrule\end{tabular}}\end{table*}",
        ]
    )


def _tex_cell(value: Value, column: Column) -> list[str]:
    """Format a value as the lines of a cell."""
    shown = column.show(value)
    if isinstance(value, str):
        return wrap(shown, LABEL_WIDTH, break_long_words=False, break_on_hyphens=False)
    return shown.replace("-", "−").replace(" [", "\n[").split("\n")


def _tex_row(row: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in zip_longest(*row, fillvalue="")]
    # Without {}, TeX would read the start of such a line as the argument of the \\ before it.
    return "\n".join("{}" + line if line.startswith(("[", "*")) else line for line in lines)


def _tex(text: str) -> str:
    return "".join(TEX_SIGNS.get(character, character) for character in text)
