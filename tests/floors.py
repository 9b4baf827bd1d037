"""The lowest version of each package that pyproject.toml admits, as constraints for pip; torch has its own source."""

import re
import tomllib
from pathlib import Path

EXTRAS = ("dev", "benchmarks", "joblib", "notebooks", "optuna", "report", "slurm")  # what the tests need


def floors() -> list[str]:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+)(;.*)?", each.replace(" ", "")) for each in named]
    return sorted(f"{each[1]}=={each[2]}" for each in found if each and each[1] != "torch")


if __name__ == "__main__":
    print("\n".join(floors()))
