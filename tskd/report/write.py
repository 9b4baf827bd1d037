"""The files of a report."""

from collections.abc import Sequence
from pathlib import Path

from tskd.report import figures, findings, means, page, tables
from tskd.report.diversity import Embed
from tskd.report.findings import Findings
from tskd.report.runs import Collected
from tskd.report.tables import Table
from tskd.storage import atomic_files

FEW = 5  # examples of each kind in the Markdown


def write(collected: Collected, out: Path, embed: Embed | None = None) -> list[Path]:
    """Everything about the runs, in ``out``; comes back as the files that a reader begins with."""
    found = [findings.of(study, embed) for study in collected.studies]
    folders = [out] if len(found) == 1 else [out / _folder(each.study.name) for each in found]
    averaged = means.of(collected.studies)
    of_subsets = [(each.name, tables.of_means(each)) for each in averaged if each.arms]
    about = [_runs(collected), *collected.left_out, *(line for each in averaged for line in each.left_out)]
    parts = ["# Report", "\n".join(f"- {line}" for line in about)]
    for name, made in of_subsets:
        _write_tables(made, [], out / _folder(name))
        parts += [f"## {name}", *map(_section, made)]
    studies = [(each, tables.of(each), folder) for each, folder in zip(found, folders, strict=True)]
    for each, made, folder in studies:
        _write_tables(made, [tables.failures(each), tables.examples(each)], folder)
        drawn = figures.of(each)
        for name, draw in drawn.items():
            figures.save(draw, folder / "figures", name)
        where = (folder / "figures").relative_to(out)
        parts += [f"## {each.study.name}", *map(_section, made), *(f"![{name}]({where}/{name}.png)" for name in drawn)]
    atomic_files.write_text(out / "report.md", "\n\n".join(parts) + "\n")
    atomic_files.write_text(out / "examples.md", "\n\n".join(["# Examples", *map(_examples, found)]) + "\n")
    atomic_files.write_text(out / "report.html", page.page(about, of_subsets, studies))
    return [out / name for name in ("report.md", "examples.md", "report.html")]


def _write_tables(numbers: Sequence[Table], texts: Sequence[Table], folder: Path) -> None:
    """All as CSV, and those that hold numbers alone as LaTeX."""
    for table in [*numbers, *texts]:
        atomic_files.write_text(folder / f"{table.name}.csv", tables.to_csv(table))
    latex = [r"% \usepackage{booktabs,graphicx}", *map(tables.to_latex, numbers)]
    atomic_files.write_text(folder / "tables.tex", "\n\n".join(latex) + "\n")


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in name)


def _runs(collected: Collected) -> str:
    runs = [run for study in collected.studies for arm in study.arms for run in arm.runs]
    devices = sorted({str(run.provenance.get("device", "unknown")) for run in runs})
    return f"{len(runs)} completed runs, made on {', '.join(devices)}."


def _section(table: Table) -> str:
    return f"### {table.title}\n\n{tables.to_markdown(table)}"


def _examples(found: Findings) -> str:
    """The widest and the narrowest gaps on both sides, and what the target gets wrong."""
    kept = [example for example in found.examples if example.kept]
    dropped = [example for example in found.examples if not example.kept]
    kinds = {
        "Kept, the widest gaps": kept[:FEW],
        "Kept, the narrowest gaps": kept[-FEW:],
        "Kept by no run, the widest gaps": dropped[:FEW],
        "Kept by no run, the narrowest gaps": dropped[-FEW:],
    }
    parts = [f"## {found.study.name}"]
    for kind, few in kinds.items():
        table = tables.examples(Findings(found.study, (), (), (), tuple(few)))
        of_all = len(kept if kind.startswith("Kept,") else dropped)
        parts.append(f"### {kind} ({len(few)} of {of_all})\n\n{tables.to_markdown(table)}")
    few_failures = Findings(found.study, (), (), found.failures[: 4 * FEW], ())
    table = tables.failures(few_failures)
    parts.append(f"### Failures ({len(few_failures.failures)} of {len(found.failures)})\n\n{tables.to_markdown(table)}")
    return "\n\n".join(parts)
