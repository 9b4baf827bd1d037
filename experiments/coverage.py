"""Compare the estimate by which `iterations=auto` stops with true coverage.

    python -m tskd.run -m iterations=10 expansion.num_drafts=60 seed=0,1,2,3,4 training.each_iteration=false \
        task.epochs=1 training.replay.source=none tracking.mode=disabled hydra.sweep.dir=outputs/coverage
    python experiments/coverage.py outputs/coverage
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from tskd.records import Iteration
from tskd.report.statistics import summarise
from tskd.report.table_writer import Column, columns, to_markdown
from tskd.stages.coverage import coverage
from tskd.storage.run_folder import RunFolder
from tskd.tasks.atlas import Atlas

RESULTS = Path(__file__).parent / "results" / "atlas_coverage.json"
COLUMNS = {
    "ours": Column("estimate", 2),
    "known_next": Column("what came next", 2),
    "facts": Column("facts covered", 2),
    "pooled": Column("Good, all iterations", 2),
    "chao": Column("Chao1", 2),
}
ESTIMATES, TRUTHS = ("ours", "pooled", "chao"), ("known_next", "facts")


@dataclass(frozen=True)
class Row:
    """One iteration of one run: three estimates, and two truths to compare them with.

    ``known_next`` is the share of the next iteration's drafts of kept prompts whose prompt was kept by now, ``None``
    after the last iteration. ``facts`` is the share of the private facts whose question is kept.
    """

    seed: int
    iteration: int
    ours: float
    pooled: float | None
    chao: float | None
    known_next: float | None
    facts: float


def draws_of_kept(done: Sequence[Iteration], of: Sequence[Iteration]) -> Counter[str]:
    """Count the drafts in ``of`` of each prompt that is kept in ``done``."""
    kept = {e.response.prompt.fingerprint for past in done for e in past.selection.kept}
    draws = Counter[str]()
    for past in of:
        draws.update(p.fingerprint for p in past.expansion.prompts)
        draws.update(past.expansion.repeats)
    return Counter({prompt: count for prompt, count in draws.items() if prompt in kept})


def rows_of(folder: Path, seed: int) -> list[Row]:
    history, private = RunFolder(folder).history(), {q.prompt.fingerprint for q in Atlas().examples()}
    rows = []
    for past in range(1, len(history) + 1):
        done = history[:past]
        kept = {e.response.prompt.fingerprint for each in done for e in each.selection.kept}
        pooled = draws_of_kept(done, done)
        once, twice = (sum(count == times for count in pooled.values()) for times in (1, 2))
        unseen = once * (once - 1) / (2 * (twice + 1))  # Chao 1984, corrected for bias
        after = draws_of_kept(history[: past + 1], history[past : past + 1])
        rows.append(
            Row(
                seed=seed,
                iteration=past - 1,
                ours=coverage(done),
                pooled=1 - once / pooled.total() if pooled else None,
                chao=len(pooled) / (len(pooled) + unseen) if pooled else None,
                known_next=sum(n for p, n in after.items() if p in kept) / after.total() if after else None,
                facts=len(kept & private) / len(private),
            )
        )
    return rows


def coverage_table() -> str:
    """Average the committed results over seeds, and the absolute errors over rows."""
    results = json.loads(RESULTS.read_text())
    rows = []
    for index in sorted({row["iteration"] for row in results}):
        here = [row for row in results if row["iteration"] == index]
        rows.append([index, len(here), *summarise(here, COLUMNS)])
    for truth in TRUTHS:
        errors = [_errors(row, truth) for row in results if row[truth] is not None]
        means = {name: f"{fmean(error[name] for error in errors if name in error):.3f}" for name in ESTIMATES}
        cells = [means.get(name, "") for name in COLUMNS]
        rows.append([f"mean error, {COLUMNS[truth].name}", f"{len(errors)} rows", *cells])
    return to_markdown([*columns("iteration", "runs"), *COLUMNS.values()], rows)


def _errors(row: Mapping[str, Any], truth: str) -> dict[str, float]:
    return {name: abs(row[name] - row[truth]) for name in ESTIMATES if row[name] is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimated against true coverage, of the jobs of a sweep over seeds.")
    parser.add_argument("sweep", type=Path)
    seeds = {
        yaml.safe_load(file.read_text())["seed"]: file.parent
        for file in parser.parse_args().sweep.glob("*/config.yaml")
    }
    rows = [row for seed in sorted(seeds) for row in rows_of(seeds[seed], seed)]
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(coverage_table())


if __name__ == "__main__":
    main()
