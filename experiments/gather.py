"""The results of a sweep's jobs, by the overrides that they differ in, as one file of ``results/``.

python experiments/gather.py outputs/threshold atlas_auto_threshold
"""

import argparse
import json
from pathlib import Path

import yaml

RESULTS = Path(__file__).parent / "results"


def gather(sweep: Path) -> dict[str, dict[str, float]]:
    """Of each job that has ended well, in the order of their names."""
    jobs = [file.parent for file in sweep.glob("*/result.json")]
    overrides = {job: yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text()) for job in jobs}
    shared = set.intersection(*map(set, overrides.values()))
    names = {",".join(word for word in overrides[job] if word not in shared): job for job in jobs}
    return {name: json.loads((names[name] / "result.json").read_text()) for name in sorted(names)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The results of a sweep as one file of experiments/results.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    results = gather(options.sweep)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} results in {options.name}.json")
