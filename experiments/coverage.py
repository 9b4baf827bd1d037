"""How well the estimate that `iterations=auto` stops by tells what is covered, in finished runs of the embedded world.

    python -m tskd.run -m iterations=10 expansion.num_drafts=60 seed=0,1,2,3,4 training.each_iteration=false \
        task.epochs=1 training.replay.source=none tracking.mode=disabled hydra.sweep.dir=outputs/coverage
    python experiments/coverage.py outputs/coverage
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import yaml

from tskd.records import Iteration
from tskd.stages.coverage import coverage
from tskd.storage.run_folder import RunFolder
from tskd.tasks.atlas import Atlas

RESULTS = Path(__file__).parent / "results" / "atlas_coverage.json"


@dataclass(frozen=True)
class Row:
    """One iteration of one run: three estimates, and two truths that they may be compared with.

    ``known_next`` is the share of the next iteration's drafts of kept prompts whose prompt was kept by now; ``None``
    after the last. ``facts`` is the share of the private facts whose question is kept.
    """

    seed: int
    iteration: int
    ours: float
    pooled: float | None
    chao: float | None
    known_next: float | None
    facts: float


def draws_of_kept(done: Sequence[Iteration], of: Sequence[Iteration]) -> Counter[str]:
    """How often each prompt that is kept in ``done`` was drafted in the iterations ``of``."""
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
    """Means over the seeds, from the committed results."""
    rows = [Row(**row) for row in json.loads(RESULTS.read_text())]
    names = {
        "ours": "estimate",
        "known_next": "what came next",
        "facts": "facts covered",
        "pooled": "Good, all iterations",
        "chao": "Chao1",
    }
    lines = ["| iteration | runs | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 2) + "|"]
    for index in sorted({row.iteration for row in rows}):
        here = [row for row in rows if row.iteration == index]
        cells = [_spread([value for row in here if (value := getattr(row, name)) is not None]) for name in names]
        lines.append(f"| {index} | {len(here)} | " + " | ".join(cells) + " |")
    for truth in ("known_next", "facts"):
        errors = {
            name: [
                abs(getattr(row, name) - getattr(row, truth))
                for row in rows
                if None not in (getattr(row, name), getattr(row, truth))
            ]
            for name in ("ours", "pooled", "chao")
        }
        cells = [f"{fmean(errors[name]):.3f}" if name in errors else "" for name in names]
        lines.append(f"| mean error, {names[truth]} | {len(errors['ours'])} rows | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "–"
    return f"{fmean(values):.2f} ± {stdev(values):.2f}"


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
