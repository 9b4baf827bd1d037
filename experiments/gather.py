"""Write the results of a sweep's jobs, by differing overrides, to ``results/``.

python experiments/gather.py outputs/threshold atlas_auto_threshold
python experiments/gather.py outputs/iterations atlas_iterations --iterations   # a result for each iteration
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import yaml

from tskd.records import PRIVATE, Graded
from tskd.storage.atomic_files import read_json, read_lines

RESULTS = Path(__file__).parent / "results"
Result = dict[str, float]


def gather(sweep: Path, by_iteration: bool = False) -> dict[str, Result]:
    """Of each job that has ended well, in the order of their names.

    Where jobs hold out different questions, a result has ``eval/common_accuracy`` too: of the private ones of all jobs.
    """
    names = jobs_of(sweep)
    if by_iteration:
        return {
            f"{name},iteration={index}": row
            for name, job in names.items()
            for index, row in enumerate(read_lines(dict, job / "metrics.jsonl"))
        }
    results = {name: read_json(dict, job / "result.json") for name, job in names.items()}
    private = {name: {each.question: each.correct for each in graded(job)} for name, job in names.items()}
    common = set.intersection(*map(set, private.values()))
    for name, is_correct in private.items():
        if common and any(common != set(others) for others in private.values()):
            results[name]["eval/common_accuracy"] = fmean(is_correct[question] for question in common)
            results[name]["eval/common_questions"] = len(common)
    return results


def jobs_of(sweep: Path) -> dict[str, Path]:
    """Find the folders of jobs that have a result, by their differing overrides."""
    jobs = [file.parent for file in sweep.glob("*/result.json")]
    overrides = {job: yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text()) for job in jobs}
    shared = set.intersection(*map(set, overrides.values()))
    names = {",".join(word for word in overrides[job] if word not in shared): job for job in jobs}
    return {name: names[name] for name in sorted(names)}


def graded(job: Path, voice: str | None = None) -> list[Graded]:
    """Read the answers to private questions by ``voice``, else by the last target."""
    last = f"iteration_{read_json(dict, job / 'result.json')['iterations'] - 1}"
    answers = read_lines(Graded, job / "evaluation" / f"{voice or last}.jsonl")
    return [answer for answer in answers if answer.split == PRIVATE]


def write(name: str, results: dict[str, Result]) -> None:
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} results in {name}.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The results of a sweep as one file of experiments/results.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    parser.add_argument("--iterations", action="store_true", help="one result for each iteration of a job")
    options = parser.parse_args()
    write(options.name, gather(options.sweep, options.iterations))
