"""A report as one HTML file that opens without a server: tables, figures, and every example to be searched."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tskd.report import tables
from tskd.report.findings import Findings
from tskd.report.tables import Table

TEMPLATE = Path(__file__).with_name("page.html")
# What can be searched, shown as text or number, under the heading and the name that the page's script has for it.
EXAMPLES = (
    *(("gap", "gap", "number"), ("base perplexity", "base", "number"), ("teacher perplexity", "teacher", "number")),
    *(("runs that kept it", "kept", "number"), ("runs that scored it", "scored", "number")),
    *(("prompt", "prompt", "text"), ("response", "response", "text")),
)
FAILURES = (
    *(("arm", "arm", "text"), ("question", "question", "text"), ("runs wrong", "wrong", "number")),
    *(("runs", "n", "number"), ("teacher", "teacher", "text"), ("target", "target", "text")),
)
FILTERS = """\
<label>gap at least <input name="least" type="number" step="any"></label>
<label>at most <input name="most" type="number" step="any"></label>
<label>side <select name="side">
<option value="">both</option><option>kept</option><option>dropped</option></select></label>
"""


def page(
    about: Sequence[str],
    means: Sequence[tuple[str, Sequence[Table]]],
    parts: Sequence[tuple[Findings, Sequence[Table], Path]],
) -> str:
    """The page: what is said of the runs, the means over subsets by name, and each study with its tables.

    With each study comes the folder where its figures are.
    """
    data: dict[str, Any] = {}
    links: list[str] = []
    body = [f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in about)}</ul>"]
    for number, (name, of_means) in enumerate(means):
        links.append(f'<a href="#means-{number}">{escape(name)}</a>')
        body += [f'<h2 id="means-{number}">{escape(name)}</h2>', *map(_table, of_means)]
    for number, (found, made, folder) in enumerate(parts):
        key = f"study-{number}"
        links.append(f'<a href="#{key}">{escape(found.study.name)}</a>')
        body.append(f'<h2 id="{key}">{escape(found.study.name)}</h2>')
        body += [_table(table) for table in made]
        body.append(f'<div class="figures">{"".join(map(_figure, sorted((folder / "figures").glob("*.svg"))))}</div>')
        for kind, columns, rows in (("examples", EXAMPLES, _examples(found)), ("failures", FAILURES, _failures(found))):
            name = f"{kind}-{number}"
            links.append(f'<a href="#{name}">{kind}</a>')
            said = [{"name": head, "key": column, "kind": how} for head, column, how in columns]
            data[name] = {"columns": said, "rows": rows}
            body.append(_browser(name, kind, said, FILTERS if kind == "examples" else ""))
    filled = {"title": "TuneShift-KD report", "links": "\n".join(links), "body": "\n".join(body), "data": _json(data)}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(filled)


def _table(table: Table) -> str:
    kinds = ["text" if tables.is_text(table, place) else "number" for place in range(len(table.columns))]
    heads = "".join(
        f'<th class="{kind}">{escape(column.name)}</th>' for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "".join(
        "<tr>" + "".join(f'<td class="{k}">{escape(cell)}</td>' for cell, k in zip(cells, kinds, strict=True)) + "</tr>"
        for cells in tables.cells(table)
    )
    caption = f'<p class="caption">{escape(table.caption)}</p>'
    return (
        f"<h3>{escape(table.title)}</h3>{caption}"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _figure(file: Path) -> str:
    drawn = b64encode(file.read_bytes()).decode()
    return f'<figure><img alt="{escape(file.stem)}" src="data:image/svg+xml;base64,{drawn}"></figure>'


def _browser(name: str, kind: str, columns: Sequence[Mapping[str, str]], filters: str) -> str:
    heads = "".join(f'<th class="{column["kind"]}">{escape(column["name"])}</th>' for column in columns)
    return (
        f'<section data-browse="{name}"><h3 id="{name}">{kind.capitalize()}</h3>'
        f'<form><label>search <input name="search" type="search"></label>{filters}<output></output></form>'
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody></tbody></table></div></section>'
    )


def _examples(found: Findings) -> list[list[Any]]:
    return [
        [*map(_finite, (e.gap, e.base_ppl, e.teacher_ppl)), e.kept, e.scored, e.prompt, e.response]
        for e in found.examples
    ]


def _failures(found: Findings) -> list[list[Any]]:
    return [[f.arm, f.question, f.wrong, f.n, f.teacher, f.target] for f in found.failures]


def _finite(value: float) -> float:
    """JSON has no infinity."""
    return value if math.isfinite(value) else math.copysign(1e300, value)


def _json(data: Any) -> str:
    """Such that no text in it can end the script that it is in."""
    return json.dumps(data).replace("<", "\\u003c")
