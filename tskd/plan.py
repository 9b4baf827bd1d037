"""What a run will do, before it is given the time: no weights are loaded, and nothing is left on disk.

python -m tskd.plan                                      # the overrides are those of tskd.run
python -m tskd.plan -m threshold=0.5,1.0 target=llama3   # a plan for each job of a sweep
"""

import sys

import hydra
from omegaconf import DictConfig

from tskd.config import hydra_plugins, saved
from tskd.errors import TskdError

failed: list[str] = []  # why runs that this process has planned cannot come to their end


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="plan")
def _hydra_job(cfg: DictConfig) -> None:
    from tskd.config import cost_estimate, plan_table  # here, because they load torch

    try:
        plan = cost_estimate.plan(saved.resolved(cfg))
    except TskdError as error:
        print(error, file=sys.stderr)  # and the next job of a sweep is planned
        failed.append(str(error))
    else:
        plan_table.show(plan)
        failed.extend([plan.end] if plan.end is not None else [])


def main() -> None:
    failed.clear()
    with hydra_plugins.leaving_nothing("plan"):
        _hydra_job()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
