"""The tables of ``experiments/README.md``, made from the committed results: ``python experiments/tables.py``."""

import json
from pathlib import Path
from statistics import fmean, stdev

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "target before": "eval/target_accuracy",
    "teacher": "eval/teacher_accuracy",
    "target after": "eval/accuracy",
    "general after": "eval/general_accuracy",
    "kept": "select/kept",
    "precision": "select/precision",
    "recall": "select/recall",
}


def read(name: str) -> dict[str, float]:
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def table(rows: dict[str, dict[str, float]], label: str, spread: bool) -> str:
    """A Markdown table with a row for each result, and mean ± standard deviation below them where asked."""
    lines = [f"| {label} | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, result in rows.items():
        lines.append(f"| {name} | " + " | ".join(_show(result[key]) for key in COLUMNS.values()) + " |")
    if spread:
        columns = [[result[key] for result in rows.values()] for key in COLUMNS.values()]
        cells = [f"{_show(fmean(values))} ± {_show(stdev(values))}" for values in columns]
        lines.append(f"| mean ± sd, n = {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def default_table() -> str:
    return table({str(seed): read(f"atlas_seed={seed}") for seed in (0, 1, 2)}, "seed", spread=True)


def threshold_table() -> str:
    rows = {}
    for threshold, suffix in (("0", ",threshold=0"), ("1.5", "")):
        rows |= {f"{threshold}, seed {seed}": read(f"atlas_seed={seed}{suffix}") for seed in (0, 1)}
    return table(rows, "threshold", spread=False) + "\n| 0.5, 4 | not run to the end" + " |" * len(COLUMNS)


def _show(value: float) -> str:
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}".removesuffix(".0")


if __name__ == "__main__":
    print(default_table(), threshold_table(), sep="\n\n")
