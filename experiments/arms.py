"""Make the table of the arms from committed results, or first from a sweep's.

python experiments/arms.py outputs/arms/…   # writes results/atlas_arms.json
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from tskd.report.statistics import mean_and_sd, summarise
from tskd.report.table_writer import Column, columns, to_markdown

RESULTS = Path(__file__).parent / "results" / "atlas_arms.json"
RULE = "ppl_difference"  # the paper's, with which the others are compared
COLUMNS = {
    "train/examples": Column("examples"),
    "select/precision": Column("precision", 3),
    "eval/accuracy": Column("private", 3),
    "eval/general_accuracy": Column("general", 3),
}
Results = dict[str, dict[str, dict[str, Any]]]


def collect(sweep: Path) -> Results:
    """Return the result of each job, by arm and seed.

    Raises:
        FileNotFoundError: A job has no result.
    """
    found: Results = {}
    for file in sorted(sweep.glob("*/.hydra/overrides.yaml")):
        given = dict(str(override).split("=", 1) for override in OmegaConf.load(file))
        arm = given["experiment"].removeprefix("arms/")
        found.setdefault(arm, {})[given["seed"]] = json.loads((file.parents[1] / "result.json").read_text())
    return found


def table(results: Results) -> str:
    """Make a row for each arm, the best first: means ± sd over its seeds.

    The last column compares seed by seed.
    """
    rows, rule = [], results.get(RULE, {})
    for arm, by_seed in sorted(results.items(), key=lambda item: -fmean(r["eval/accuracy"] for r in item[1].values())):
        points = [
            100 * (result["eval/accuracy"] - rule[seed]["eval/accuracy"])
            for seed, result in by_seed.items()
            if seed in rule and arm != RULE
        ]
        rows.append([arm, len(by_seed), *summarise([*by_seed.values()], COLUMNS), mean_and_sd(points)])
    heads = (*columns("arm", "seeds"), *COLUMNS.values(), Column(f"points over {RULE}", 1))
    return to_markdown(heads, rows)


def read() -> Results:
    return json.loads(RESULTS.read_text())  # type: ignore[no-any-return]


if __name__ == "__main__":
    if sys.argv[1:]:
        RESULTS.write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n")
    print(table(read()))
