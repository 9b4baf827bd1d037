"""Run TuneShift-KD from the command line: compose, build the stages, consume the iterations.

python -m tskd.run                                      # the embedded world
python -m tskd.run -m threshold=0.5,1.0 target=llama3   # a sweep
python -m tskd.run resume=outputs/…                     # go on with a stopped run
python -m tskd.run … resume=auto                        # with the newest of this configuration, or begin one
python -m tskd.run sweep.resume=outputs/…               # with the jobs of a sweep that are not completed
"""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tskd.config import hydra_plugins, saved
from tskd.config.saved import resolved
from tskd.config.sweeps import all_completed, exit_with_status, to_go_on_with
from tskd.errors import ConfigError, RunFolderError
from tskd.experiment import OBJECTIVE, job
from tskd.runtime import processes
from tskd.storage import atomic_files, status
from tskd.storage.status import with_status

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="config")
def _hydra_job(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    if is_sweep and status.completed(folder):
        log.info("%s was completed before.", folder.name)
        return atomic_files.read_json(dict, folder / "result.json").get(OBJECTIVE)
    group = Path(hydra_config.sweep.dir if is_sweep else folder).resolve().name
    result = with_status(
        folder, lambda: job(resolved(cfg, is_sweep), folder, group, "sweep-job" if is_sweep else "run")
    )
    return None if result is None else result.get(OBJECTIVE)  # what a search makes as high as it can


def resume(folder: Path, overrides: Sequence[str]) -> None:
    """Go on with the run in ``folder``, under its own configuration, which ``overrides`` must not contradict."""
    stored = saved.of_run(folder)
    OmegaConf.update(stored, "trainer.devices", processes.count())  # what several processes began, one may end
    for override in overrides:
        key, _, value = override.partition("=")
        given = OmegaConf.create({"value": OmegaConf.from_dotlist([f"value={value}"])["value"]})["value"]
        found = OmegaConf.select(stored, key.lstrip("+"))
        if key in saved.FREE:
            OmegaConf.update(stored, key, given)
        elif isinstance(found, DictConfig) or found != given:
            raise ConfigError(f"`{override}` contradicts the run in {folder}, where {key} is {found}; leave it out.")
    hydra_plugins.keep_files_private(stored)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    cfg: Any = OmegaConf.to_container(stored, resolve=True, throw_on_missing=True)
    if not any(override.startswith("allow=") for override in overrides):
        cfg["allow"] = []  # the folder may have come from elsewhere
    with_status(folder, lambda: job(cfg, folder, folder.resolve().name, "run"))


def main() -> None:
    """The command line: ``resume=`` and ``sweep.resume=`` are read here, anything else is Hydra's."""
    processes.launch(_main)


def _main() -> None:
    hydra_plugins.register()
    try:
        folder, arguments = to_go_on_with(sys.argv[1:])
        if folder is not None:
            resume(folder, arguments)
    except (ConfigError, RunFolderError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    if folder is None:
        sys.argv[1:] = arguments
        try:
            _hydra_job()
        except SystemExit:
            all_completed()
            raise
        except KeyboardInterrupt:  # of what waits for jobs that a launcher has sent to Slurm; they go on there
            all_completed()
            raise SystemExit(128 + signal.SIGINT) from None
        exit_with_status()
    elif not status.completed(folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
