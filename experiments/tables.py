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
        cells = [f"{_show(fmean(values))} ± {_show(stdev(values))}" for values in _columns(list(rows.values()))]
        lines.append(f"| mean ± sd, n = {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def default_table() -> str:
    return table({str(seed): read(f"atlas_seed={seed}") for seed in (0, 1, 2)}, "seed", spread=True)


def threshold_table() -> str:
    rows = {}
    for threshold, suffix in (("0", ",threshold=0"), ("0.5", ",threshold=0.5"), ("1.5", ""), ("4", ",threshold=4")):
        rows |= {f"{threshold}, seed {seed}": read(f"atlas_seed={seed}{suffix}") for seed in (0, 1)}
    return table(rows, "threshold", spread=False)


def replay_table() -> str:
    rows = {}
    prefixes = {"none": "replay=none,", "KL, weight 1": "weight=1,", "KL, weight 3": "weight=3,", "KL, weight 10": ""}
    for label, prefix in prefixes.items():
        results = [read(f"atlas_{prefix}seed={seed}") for seed in (0, 1, 2)]
        rows[label] = [f"{_show(fmean(values))} ± {_show(stdev(values))}" for values in _columns(results)]
    lines = ["| replay | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def _columns(results: list[dict[str, float]]) -> list[list[float]]:
    return [[result[key] for result in results] for key in COLUMNS.values()]


def _show(value: float) -> str:
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}".removesuffix(".0")


if __name__ == "__main__":
    print(default_table(), threshold_table(), replay_table(), sep="\n\n")
