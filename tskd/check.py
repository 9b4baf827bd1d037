"""All that is wrong with a configuration, at once and before hours are spent: no weights are loaded, nothing is left.

python -m tskd.check                                      # the overrides are those of tskd.run
python -m tskd.check -m threshold=0.5,1.0 target=llama3   # each job of a sweep

A line for each problem; the exit code is 1 where there is one. Notes say what is right, but may not be expected.
"""

import hydra
from omegaconf import DictConfig

from tskd.config import hydra_plugins
from tskd.tracking import console

failed: list[str] = []  # the problems that this process has found


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="check")
def _hydra_job(cfg: DictConfig) -> None:
    from tskd.config.inspection import findings_of_job  # here, because it loads torch

    found = findings_of_job(cfg)
    console.findings(found.problems, found.notes)
    failed.extend(found.problems)


def main() -> None:
    failed.clear()
    with hydra_plugins.leaving_nothing("check"):
        _hydra_job()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
