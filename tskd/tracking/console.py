"""What the terminal shows: a header, a line per iteration, and tables at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tskd.metrics.accuracy import Accuracy
from tskd.metrics.faults import FAULTS
from tskd.records import VOICES

Row = Mapping[str, Any]
JOB_COLUMNS = {
    "kept": ("train/examples", "d"),
    "precision": ("select/precision", ".2f"),
    "recall": ("select/recall", ".2f"),
    "accuracy": ("eval/accuracy", ".3f"),
    "general": ("eval/general_accuracy", ".3f"),
    "points": ("eval/points_gained", "+.1f"),
}
# Names, paths and errors are shown as they are: `experiment=[a,b]` is no mark-up, and `:x:` no picture.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def header(settings: Mapping[str, str]) -> None:
    console.print(bold("TuneShift-KD"))
    for name, value in settings.items():
        console.print(f"  {name:<10} {value}")


def iteration(index: int, row: Row) -> None:
    parts = [
        f"{row['prompts/new']} new prompts"
        + (f", {row['prompts/screened']} not asked" * bool(row["prompts/screened"])),
        f"{row['select/kept']} kept ({number(row['select/kept_fraction'], '.0%')})",
        "gap " + " / ".join(number(row[f"score/gap_p{p}"], ".2f") for p in (5, 50, 95)),
    ]
    if faults := [f"{row[f'score/{name}']} {name.replace('_', ' ')}" for name in FAULTS if row.get(f"score/{name}")]:
        parts.append("responses: " + ", ".join(faults))
    if row.get("train/not_finite"):
        parts.append(f"{row['train/not_finite']} left out of training")
    if row.get("select/precision") is not None:
        parts.append(f"precision {row['select/precision']:.2f} recall {number(row['select/recall'], '.2f')}")
    if row.get("prompts/coverage") is not None:
        parts.append(f"coverage {row['prompts/coverage']:.2f}")
    if row.get("eval/accuracy") is not None:
        parts.append(f"accuracy {row['eval/accuracy']:.3f}")
    if row.get("eval/general_accuracy") is not None:
        parts.append(f"general {row['eval/general_accuracy']:.3f}")
    parts.append(f"{row['cost/seconds']:.0f} s")
    if row.get("cost/reused_seconds", 0) >= 1:
        parts.append(f"{row['cost/reused_seconds']:.0f} s saved by the store")
    console.print(bold(f"iteration {index}"), " " + " · ".join(parts))


def teacher(card: Mapping[str, Any], folder: Path) -> None:
    """What a teacher can do that its base cannot."""
    console.print(
        bold("teacher"),
        f" {card['num_examples']} examples of {card['task']} · base {card['base_accuracy']:.3f} "
        f"± {card['base_standard_error']:.3f} · teacher {card['teacher_accuracy']:.3f} "
        f"± {card['teacher_standard_error']:.3f} (held-out, n = {card['num_held_out']}) · {folder}",
    )


def outcome(accuracies: Mapping[str, Mapping[str, Accuracy]], result: Row, folder: Path, adapter: str | None) -> None:
    splits = list(next(iter(accuracies.values()), {}))
    if splits:
        table = Table(title="accuracy on held-out questions")
        table.add_column("")
        for split in splits:
            count = len(next(iter(accuracies.values()))[split].correct)
            table.add_column(f"{split} (n = {count})", justify="right")
        for voice in VOICES:
            if voice in accuracies:
                table.add_row(voice, *(number(accuracies[voice][split].value, ".3f") for split in splits))
        console.print(table)
    if result.get("eval/points_gained") is not None:
        gain = result.get("eval/recovered_gain")
        shown = f"{gain:.1%}" if gain is not None else "not shown: the teacher's lead is within two standard errors"
        console.print(f"points gained {result['eval/points_gained']:+.1f} · recovered gain {shown}")
    console.print(f"records, metrics and result: {folder}")
    if adapter is not None:
        console.print(f"adapter (PEFT): {folder / adapter}")


def sweep(jobs: Sequence[tuple[str, Row, Row]], folder: Path) -> None:
    """A row for each job, with the numbers that any of them has; names are long, so the rest is narrow."""
    measured = {
        column: (metric, form)
        for column, (metric, form) in JOB_COLUMNS.items()
        if any(result.get(metric) is not None for *_, result in jobs)
    }
    table = Table(title="jobs, best first", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("job", overflow="fold")
    table.add_column("status", no_wrap=True)
    for column in measured:
        table.add_column(column, justify="right", no_wrap=True)
    for name, status, result in jobs:
        numbers = (number(result.get(metric), form) for metric, form in measured.values())
        table.add_row(name, status["status"], *numbers)
    console.print(table)
    for name, status, _ in jobs:
        if status["status"] != "completed":
            console.print(bold(name) + f": {status.get('error', 'did not finish')}")
    console.print(f"all jobs: {folder}")


def findings(problems: Sequence[str], notes: Sequence[str]) -> None:
    """Print a line for each problem and each note that a check has found."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems" if problems else "nothing wrong"
    console.print(bold("Check"), f" {count}")
    for kind, lines in (("problem", problems), ("note", notes)):
        for line in lines:
            console.print(f"  {kind:<10} {line}")


def bold(words: str) -> Text:
    return Text.assemble((words, "bold"))


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def shown_bytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
