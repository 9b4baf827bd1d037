"""Run TuneShift-KD from the command line.

python -m tskd.run                                      # the embedded world
python -m tskd.run -m threshold=0.5,1.0 target=llama3   # a sweep
python -m tskd.run resume=outputs/…                     # go on with a stopped run
python -m tskd.run … resume=auto                        # with the newest of this configuration, or begin one
python -m tskd.run sweep.resume=outputs/…               # with the jobs of a sweep that are not completed
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from tskd.config import hydra_plugins, saved, sweeps
from tskd.errors import ConfigError, RunFolderError
from tskd.runtime import processes
from tskd.storage import status


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="config")
def _hydra_job(cfg: DictConfig) -> float | None:
    from tskd.experiment import job  # here, because it loads torch

    return sweeps.run_job(cfg, job)


def resume(folder: Path, overrides: list[str]) -> None:
    """Go on with the run in ``folder``, under its own configuration, which ``overrides`` must not contradict."""
    from tskd.experiment import job

    cfg = saved.to_resume(folder, overrides)
    hydra_plugins.begin_without_hydra(cfg)
    status.with_status(folder, lambda: job(cfg, folder, folder.resolve().name, "run"))


def main() -> None:
    processes.launch(_main)


def _main() -> None:
    """Read ``resume=`` and ``sweep.resume=``, and leave all other arguments to Hydra."""
    hydra_plugins.register()
    try:
        folder, arguments = sweeps.to_go_on_with(sys.argv[1:])
        if folder is not None:
            resume(folder, arguments)
    except (ConfigError, RunFolderError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    if folder is None:
        sys.argv[1:] = arguments
        sweeps.exit_with_status(_hydra_job)
    elif not status.completed(folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
