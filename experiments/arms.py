"""The table of the arms, from their committed results; with the folder of a sweep, its results are taken first.

python experiments/arms.py outputs/arms/…   # writes results/atlas_arms.json
"""

import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

RESULTS = Path(__file__).parent / "results" / "atlas_arms.json"
RULE = "ppl_difference"  # what the others are compared with: the paper's rule
COLUMNS = {  # and the digits to show
    "examples": ("train/examples", 0),
    "precision": ("select/precision", 3),
    "private": ("eval/accuracy", 3),
    "general": ("eval/general_accuracy", 3),
}
Results = dict[str, dict[str, dict[str, Any]]]


def collect(sweep: Path) -> Results:
    """By arm and seed, the result of each job. Raises ``FileNotFoundError`` where one has not ended with one."""
    found: Results = {}
    for file in sorted(sweep.glob("*/.hydra/overrides.yaml")):
        given = dict(str(override).split("=", 1) for override in OmegaConf.load(file))
        arm = given["experiment"].removeprefix("arms/")
        found.setdefault(arm, {})[given["seed"]] = json.loads((file.parents[1] / "result.json").read_text())
    return found


def table(results: Results) -> str:
    """A row for each arm, the best first: means over its seeds ± sd; the last column is of differences by seed."""
    head = ["arm", "seeds", *COLUMNS, f"points over {RULE}"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm, by_seed in sorted(results.items(), key=lambda item: -_mean(item[1], "eval/accuracy")):
        cells = [_spread([result[key] for result in by_seed.values()], digits) for key, digits in COLUMNS.values()]
        rule = results.get(RULE, {})
        points = [
            100 * (result["eval/accuracy"] - rule[seed]["eval/accuracy"])
            for seed, result in by_seed.items()
            if seed in rule and arm != RULE
        ]
        lines.append("| " + " | ".join([arm, str(len(by_seed)), *cells, _spread(points, 1)]) + " |")
    return "\n".join(lines)


def read() -> Results:
    return json.loads(RESULTS.read_text())  # type: ignore[no-any-return]


def _mean(by_seed: dict[str, dict[str, Any]], key: str) -> float:
    return fmean(result[key] for result in by_seed.values())


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{sd}"


if __name__ == "__main__":
    if sys.argv[1:]:
        RESULTS.write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n")
    print(table(read()))
