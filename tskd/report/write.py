"""Write the files of a report."""

from pathlib import Path

from tskd.report import figures
from tskd.report.diversity import Embed
from tskd.report.findings import Findings, analyse_study
from tskd.report.means import average_over_subsets
from tskd.report.page import Section, page
from tskd.report.runs import Collected
from tskd.report.table_writer import Table, to_csv, to_latex, to_markdown
from tskd.report.tables import examples_table, failures_table, tables_of_findings, tables_of_means
from tskd.storage import atomic_files

FEW = 5  # examples of each kind in the Markdown


def write(collected: Collected, out: Path, embed: Embed | None = None) -> list[Path]:
    """Write tables, figures and a page about all runs into ``out``.

    Returns:
        The files that a reader begins with.
    """
    means = average_over_subsets(collected.studies)
    found = [analyse_study(study, embed) for study in collected.studies]
    sections = [Section(each.name, _folder(out, each.name), tables_of_means(each)) for each in means if each.arms]
    for each in found:
        folder = out if len(found) == 1 else _folder(out, each.study.name)
        drawn = figures.figures_of(each)
        for name, draw in drawn.items():
            figures.save(draw, folder / "figures", name)
        texts = [examples_table(each.examples), failures_table(each.failures)]
        sections.append(Section(each.study.name, folder, tables_of_findings(each), texts, list(drawn)))
    about = [_runs(collected), *collected.left_out, *(line for each in means for line in each.left_out)]
    parts = ["# Report", "\n".join(f"- {line}" for line in about)]
    for section in sections:
        _write_tables(section)
        where = (section.folder / "figures").relative_to(out)
        parts += [f"## {section.name}", *(f"### {table.title}\n\n{_markdown(table)}" for table in section.numbers)]
        parts += [f"![{name}]({where}/{name}.png)" for name in section.figures]
    files = {
        "report.md": "\n\n".join(parts) + "\n",
        "examples.md": "\n\n".join(["# Examples", *map(_excerpts, found)]) + "\n",
        "report.html": page(about, sections),
    }
    for name, text in files.items():
        atomic_files.write_text(out / name, text)
    return [out / name for name in files]


def _write_tables(section: Section) -> None:
    """Write all tables as CSV, and those that hold numbers alone as LaTeX."""
    for table in [*section.numbers, *section.texts]:
        atomic_files.write_text(section.folder / f"{table.name}.csv", to_csv(table))
    latex = [r"% \usepackage{booktabs,graphicx}", *map(to_latex, section.numbers)]
    atomic_files.write_text(section.folder / "tables.tex", "\n\n".join(latex) + "\n")


def _folder(out: Path, name: str) -> Path:
    return out / "".join(c if c.isalnum() or c in "_-" else "_" for c in name)


def _runs(collected: Collected) -> str:
    runs = [run for study in collected.studies for arm in study.arms for run in arm.runs]
    devices = sorted({str(run.provenance.get("device", "unknown")) for run in runs})
    return f"{len(runs)} completed runs, made on {', '.join(devices)}."


def _markdown(table: Table) -> str:
    return f"{table.caption}\n\n{to_markdown(table.columns, table.rows, table.is_text)}"


def _excerpts(found: Findings) -> str:
    """Show the widest and the narrowest gaps on both sides, and failures."""
    kept = [example for example in found.examples if example.kept]
    dropped = [example for example in found.examples if not example.kept]
    parts = [f"## {found.study.name}"]
    for kind, all_of_kind in {"Kept": kept, "Kept by no run": dropped}.items():
        for gaps, few in {"widest": all_of_kind[:FEW], "narrowest": all_of_kind[-FEW:]}.items():
            heading = f"### {kind}, the {gaps} gaps ({len(few)} of {len(all_of_kind)})"
            parts.append(f"{heading}\n\n{_markdown(examples_table(few))}")
    few_failures = found.failures[: 4 * FEW]
    heading = f"### Failures ({len(few_failures)} of {len(found.failures)})"
    return "\n\n".join([*parts, f"{heading}\n\n{_markdown(failures_table(few_failures))}"])
