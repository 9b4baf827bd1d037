"""The jobs of a sweep while it runs, as a table that refreshes."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tskd.errors import RunFolderError
from tskd.report.runs import FoundRun, labels, runs_in

SECONDS = 5


def watch(folders: Sequence[Path], console: Console) -> None:
    """Show the table until it is interrupted."""
    try:
        with Live(table(folders), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(SECONDS)
                live.update(table(folders), refresh=True)
    except KeyboardInterrupt:
        return


def table(folders: Sequence[Path]) -> Table:
    """A row for each job that has begun. A folder that is not there yet has none."""
    shown = Table(title="jobs", caption_justify="left")
    for name in ("job", "status", "done", "kept", "accuracy", "minutes", "written"):
        shown.add_column(name, justify="left" if name in ("job", "status") else "right", overflow="fold")
    try:
        found = [run for folder in folders for run in runs_in(folder)]
    except RunFolderError as error:
        shown.caption = str(error)
        return shown
    named = labels(found)
    for run, label in zip(found, named, strict=True):
        shown.add_row(label, run.status, *_progress(run))
    counts = {status: sum(run.status == status for run in found) for status in ("completed", "failed", "unfinished")}
    errors = [f"{label}: {run.error}." for run, label in zip(found, named, strict=True) if run.error]
    shown.caption = "\n".join([", ".join(f"{count} {status}" for status, count in counts.items()), *errors])
    return shown


def _progress(run: FoundRun) -> list[str]:
    last = run.rows[-1] if run.rows else {}
    kept = sum(row.get("select/kept") or 0 for row in run.rows)
    minutes = sum(row.get("cost/seconds") or 0 for row in run.rows) / 60
    written = max(file.stat().st_mtime for file in (run.folder, *run.folder.glob("*"), *run.folder.glob("*/*.json*")))
    accuracy = last.get("eval/accuracy")
    return [
        f"{len(run.rows)} of {run.settings.get('iterations', '?')}",
        f"{kept}",
        "–" if accuracy is None else f"{accuracy:.3f}",
        f"{minutes:.1f}",
        f"{max(time.time() - written, 0):.0f} s ago" if run.status == "unfinished" else "",
    ]
