"""The jobs of a sweep: where they are, how each one ended, and how one that did not is found again."""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml  # type: ignore[import-untyped]
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tskd.config import hydra_plugins, saved
from tskd.config.hydra_plugins import _place
from tskd.config.saved import resolved
from tskd.errors import ConfigError, RunFolderError
from tskd.storage import atomic_files, status
from tskd.storage.status import _claim, _read, completed
from tskd.tracking import console

log = logging.getLogger(__name__)
OBJECTIVE = "eval/accuracy"  # conf/hydra/sweeper/search.yaml and experiments/wandb_sweep.yaml say the same


def newest_unfinished(runs: Path, cfg: Mapping[str, Any]) -> Path | None:
    """The run in the folder ``runs`` that was started last of those that ``cfg`` can go on with."""
    files = [file for file in runs.glob("*/config.yaml") if not completed(file.parent)]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            stored = OmegaConf.to_container(OmegaConf.load(file))
        except (OSError, yaml.YAMLError):
            continue
        if not saved.differences(stored, cfg) and (claim := _claim(file.parent)) is not None:
            claim.release()
            return file.parent
    return None


def command_of_sweep(folder: Path) -> list[str]:
    """What was given on the command line for the sweep in ``folder``, with that folder as the place of its jobs.

    Raises ``RunFolderError`` where there is no sweep.
    """
    file = folder / "multirun.yaml"
    if not file.is_file():
        raise RunFolderError(f"{folder} holds no sweep: there is no {file.name} in it.")
    given = _as_written(OmegaConf.load(file).hydra.overrides)
    options = [each for each in given["hydra"] if not each.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    return ["--multirun", *given["task"], *options, _place(folder)]


def of_sweep(folder: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each job in a sweep's folder, best first: by accuracy, then those without; those not started last.

    Its name is what sets it apart, the overrides that not all jobs share; then come its status and its result.
    """
    overrides = {
        file.parents[1]: [str(override) for override in _as_written(OmegaConf.load(file))]
        for file in sorted(folder.glob("*/.hydra/overrides.yaml"))
    }
    waiting = [given for given in _asked_for(folder) if given not in overrides.values()]
    given = [*overrides.values(), *waiting]
    shared = [each for each in given[0] if all(each in others for others in given)] if len(given) > 1 else []

    def name(given: Sequence[str]) -> str:
        return ",".join(each for each in given if each not in shared)

    jobs = []
    for job, own in overrides.items():
        status = _read(job / "status.json") or {"status": "unfinished"}
        jobs.append((name(own) or job.name, status, _read(job / "result.json")))
    return sorted(jobs, key=_rank) + [(name(own), {"status": "not started"}, {}) for own in waiting]


def _asked_for(folder: Path) -> list[list[str]]:
    """The overrides of all jobs that a sweep is to have, where Hydra's own sweeper has made them."""
    file = folder / "multirun.yaml"
    if not file.is_file():
        return []
    sweep = _as_written(OmegaConf.load(file).hydra)
    parameters = [f"{key}={value}" for key, value in (sweep["sweeper"].get("params") or {}).items()]
    try:
        parsed = OverridesParser.create().parse_overrides([*parameters, *sweep["overrides"]["task"]])
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except HydraException:  # `glob(*)` cannot be read without the configuration's folders
        return []


def _as_written(node: Any) -> Any:
    """With its interpolations, as ``${hydra.job.num}``, which can be resolved in a job only."""
    return OmegaConf.to_container(node, resolve=False)


def _rank(job: tuple[str, dict[str, Any], dict[str, Any]]) -> tuple[bool, float]:
    accuracy = job[2].get(OBJECTIVE)
    return accuracy is None, -(accuracy or 0.0)


RESUMING = ("resume", "sweep.resume")


def to_go_on_with(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of the run that is to go on, if it is to be one, and the arguments beside.

    Raises ``ConfigError`` where they do not belong together, ``RunFolderError`` where there is no such sweep.
    """
    given = {key: value for key, _, value in (each.partition("=") for each in arguments) if key in RESUMING}
    rest = [each for each in arguments if each.partition("=")[0] not in RESUMING]
    if "sweep.resume" in given:
        others = [each for each in rest if not each.startswith("allow=")]
        if others or len(given) > 1:
            raise ConfigError(f"`sweep.resume=` takes one sweep and `allow=`; leave out {' '.join(others)}.")
        command = command_of_sweep(Path(given["sweep.resume"]).expanduser())
        if named := [each for each in command if each.lstrip("+").startswith("allow=") and each not in rest]:
            raise ConfigError(f"The sweep was given `{named[0]}`; if you trust that code, give it again.")
        return None, command
    if "resume" not in given:
        return None, rest
    if any(argument.startswith("-") for argument in rest):
        raise ConfigError(f"`resume=` takes one run and no options; leave out {' '.join(rest)}.")
    if given["resume"] != "auto":
        return Path(given["resume"]).expanduser(), rest
    found = _newest_unfinished(rest)
    return (None, rest) if found is None else (found, [each for each in rest if each.partition("=")[0] in saved.FREE])


def _newest_unfinished(overrides: Sequence[str]) -> Path | None:
    """Beside where a run with these overrides would be, the last unfinished one of the same configuration."""
    try:
        with hydra.initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
            composed = hydra.compose("config", list(overrides), return_hydra_config=True)
        runs = Path(composed.hydra.run.dir).parent
        with open_dict(composed):
            del composed["hydra"]
        return newest_unfinished(runs, resolved(composed))
    except (HydraException, OmegaConfBaseException, ConfigError):
        return None  # the run that begins then says what is wrong


def run_job(cfg: DictConfig, job: Callable[[dict[str, Any], Path, str, str], Mapping[str, Any]]) -> float | None:
    """Run the job that Hydra has started, or read its result if an earlier start of the sweep completed it.

    Args:
        cfg: the configuration that Hydra composed.
        job: takes the resolved configuration, the folder, the group and the type of the job; returns its result.

    Returns:
        What a search maximises, or None if the result has no accuracy.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    if is_sweep and completed(folder):
        log.info("%s was completed before.", folder.name)
        return atomic_files.read_json(dict, folder / "result.json").get(OBJECTIVE)
    group = Path(hydra_config.sweep.dir if is_sweep else folder).resolve().name
    kind = "sweep-job" if is_sweep else "run"
    result = status.with_status(folder, lambda: job(resolved(cfg, is_sweep), folder, group, kind))
    return None if result is None else result.get(OBJECTIVE)


def exit_with_status(hydra_job: Callable[[], Any]) -> None:
    """Run what ``hydra.main`` made, show a sweep's table, and exit with 1 unless every job was completed."""
    try:
        hydra_job()
    except SystemExit:
        all_completed()
        raise
    except KeyboardInterrupt:  # while this process waits for jobs that a launcher has sent to Slurm; they go on there
        all_completed()
        raise SystemExit(128 + signal.SIGINT) from None
    if not all_completed():
        raise SystemExit(1)


def all_completed() -> bool:
    """Whether all jobs of this process are; shows the table of a sweep."""
    if not hydra_plugins.started:  # --help, --cfg and the like
        return True
    (folder,) = hydra_plugins.started
    if (folder / "status.json").is_file():
        return status.completed(folder)
    found = of_sweep(folder)
    if any(status["status"] != "not started" for _, status, _ in found):  # else Hydra has said why
        console.sweep(found, folder)
    return bool(found) and all(status["status"] == "completed" for _, status, _ in found)
