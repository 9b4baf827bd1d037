"""Write a report as one HTML file that opens without a server."""

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tskd.report.table_writer import Table, cells

TEMPLATE = Path(__file__).with_name("page.html")
GAP_FILTERS = """\
<label>gap at least <input name="least" type="number" step="any"></label>
<label>at most <input name="most" type="number" step="any"></label>
<label>side <select name="side">
<option value="">both</option><option>kept</option><option>dropped</option></select></label>
"""


@dataclass(frozen=True)
class Section:
    """A part of a report: tables of numbers, tables of texts, figures in ``folder``."""

    name: str
    folder: Path
    numbers: Sequence[Table]
    texts: Sequence[Table] = ()
    figures: Sequence[str] = ()


def page(about: Sequence[str], sections: Sequence[Section]) -> str:
    """Make the page from lines about the runs and from sections with drawn figures."""
    data: dict[str, Any] = {}
    links: list[str] = []
    body = [f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in about)}</ul>"]
    for number, section in enumerate(sections):
        links.append(f'<a href="#section-{number}">{escape(section.name)}</a>')
        figures = [section.folder / "figures" / f"{name}.svg" for name in sorted(section.figures)]
        body += [f'<h2 id="section-{number}">{escape(section.name)}</h2>', *map(_table, section.numbers)]
        body.append(f'<div class="figures">{"".join(map(_figure, figures))}</div>')
        for table in section.texts:
            anchor = f"{table.name}-{number}"
            links.append(f'<a href="#{anchor}">{table.name}</a>')
            heads = [{"name": c.name, "kind": kind} for c, kind in zip(table.columns, _kinds(table), strict=True)]
            data[anchor] = {"columns": heads, "rows": [[_finite(value) for value in row] for row in table.rows]}
            body.append(_browser(anchor, table))
    # Escaped so that no text in the data can end the script that holds it.
    filled = {"data": json.dumps(data).replace("<", "\\u003c"), "links": "\n".join(links), "body": "\n".join(body)}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(filled, title="TuneShift-KD report")


def _table(table: Table) -> str:
    kinds = _kinds(table)
    rows = "".join(f"<tr>{_row('td', row, kinds)}</tr>" for row in cells(table.columns, table.rows))
    return (
        f'<h3>{escape(table.title)}</h3><p class="caption">{escape(table.caption)}</p>'
        f'<div class="wide"><table>{_head(table)}<tbody>{rows}</tbody></table></div>'
    )


def _browser(anchor: str, table: Table) -> str:
    """Make the form and the empty table that the page's script fills."""
    filters = GAP_FILTERS if table.columns[0].name == "gap" else ""
    return (
        f'<section data-browse="{anchor}"><h3 id="{anchor}">{table.title}</h3>'
        f'<form><label>search <input name="search" type="search"></label>{filters}<output></output></form>'
        f'<div class="wide"><table>{_head(table)}<tbody></tbody></table></div></section>'
    )


def _head(table: Table) -> str:
    names = [column.name for column in table.columns]
    return f"<thead><tr>{_row('th', names, _kinds(table))}</tr></thead>"


def _row(tag: str, texts: Iterable[str], kinds: Iterable[str]) -> str:
    pairs = zip(texts, kinds, strict=True)
    return "".join(f'<{tag} class="{kind}">{escape(text)}</{tag}>' for text, kind in pairs)


def _kinds(table: Table) -> list[str]:
    return ["text" if is_text else "number" for is_text in table.is_text]


def _figure(file: Path) -> str:
    drawn = b64encode(file.read_bytes()).decode()
    return f'<figure><img alt="{escape(file.stem)}" src="data:image/svg+xml;base64,{drawn}"></figure>'


def _finite(value: Any) -> Any:
    """Replace an infinite number, which JSON lacks, by a very large one."""
    return math.copysign(1e300, value) if isinstance(value, float) and not math.isfinite(value) else value
