"""The jobs of a sweep: where they are, how each one ended, and how one that did not is found again."""

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from tskd import artifacts, config, gpus, trust
from tskd.errors import ConfigError, RunFolderError, TskdError

log = logging.getLogger(__name__)
started: list[Path] = []  # the folder of the run or sweep that this process started
ROOM = 1 << 16  # bytes, more than Hydra writes before the job begins
logging.raiseExceptions = False  # a log file on a full disk would print a traceback for each line


class JobStatus(Callback):
    """Notes the folder before Hydra makes it, so that a folder that cannot be written is one line, not a traceback."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _open(config, Path(config.hydra.run.dir), "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        _open(config, folder, "hydra.sweep.dir")
        with read_write(config), open_dict(config):  # or a job with another `name` would be in another folder
            config.hydra.overrides.hydra.append(_place(folder))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        keep_files_private(config)  # in the process of a launcher too
        if config.hydra.runtime.choices["hydra/launcher"] == "gpus" and (gpu := gpus.claim()) is not None:
            log.info("This job has GPU %s.", gpu)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN and not completed(Path(config.hydra.runtime.output_dir)):
            # On a full disk, the next job of the sweep would end in Hydra's traceback.
            _check_room(Path(config.hydra.sweep.dir), "hydra.sweep.dir")


def keep_files_private(config: DictConfig) -> None:
    """Let what this process and those that it starts write be readable by its owner alone, where that is set."""
    if config.get("private_files"):
        os.umask(0o077)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have ``folder`` to oneself; a killed process's claim is void. Raises ``SystemExit`` where another runs in it."""
    claim = _claim(folder)
    if claim is None:
        log.error("Another process is running in %s; wait for it, or choose another folder.", folder)
        raise SystemExit(1)
    try:
        yield
    finally:
        claim.release()


def _claim(folder: Path) -> FileLock | None:
    claim = FileLock(folder / ".lock")
    with suppress(OSError, NotImplementedError):  # read-only, or a file system without locks
        try:
            claim.acquire(timeout=0)
        except Timeout:
            return None
    return claim


def record_start(folder: Path) -> None:
    """What ``status.json`` says for as long as nothing else is known; of an earlier attempt, nothing stays."""
    artifacts.write_json(folder / "status.json", {"status": "unfinished"})
    (folder / "error.txt").unlink(missing_ok=True)


def record_stop(folder: Path, reason: BaseException | str) -> None:
    """A run that was asked to stop has not failed. Raises ``SystemExit`` where that cannot be written."""
    log.warning("%s; go on with `resume=%s`.", reason, folder)
    try:
        artifacts.write_json(folder / "status.json", {"status": "stopped", "error": f"{reason}."})
    except RunFolderError as error:
        log.error("%s", error)
        raise SystemExit(1) from None


def record_failure(folder: Path, error: BaseException) -> None:
    """``error.txt`` with the traceback, ``status.json`` with the one line, and that line in the log.

    Where they cannot be written, only the exit code is left to tell: raises ``SystemExit``, which ends a sweep too.
    """
    known = isinstance(error, TskdError)
    line = trust.hidden(str(error) if known else f"{type(error).__name__}: {error}")
    log.error("%s%s", line, "" if known else f" (traceback in {folder / 'error.txt'})")
    trace = trust.hidden("".join(traceback.format_exception(error)))
    try:
        artifacts.write_text(folder / "error.txt", trace)
        artifacts.write_json(folder / "status.json", {"status": "failed", "error": line})
    except RunFolderError:
        if not known:
            log.error("%s cannot be written, so the traceback is here:\n%s", folder, trace)
        raise SystemExit(1) from None


def record_success(folder: Path) -> None:
    """``status.json`` alone. Raises ``SystemExit`` where it cannot be written."""
    try:
        artifacts.write_json(folder / "status.json", {"status": "completed"})
        (folder / "error.txt").unlink(missing_ok=True)
    except (RunFolderError, OSError) as error:
        log.error("%s", error)
        raise SystemExit(1) from None


def completed(folder: Path) -> bool:
    return _read(folder / "status.json").get("status") == "completed"


def newest_unfinished(runs: Path, cfg: Mapping[str, Any]) -> Path | None:
    """The run in the folder ``runs`` that was started last of those that ``cfg`` can go on with."""
    files = [file for file in runs.glob("*/config.yaml") if not completed(file.parent)]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            stored = OmegaConf.to_container(OmegaConf.load(file))
        except (OSError, yaml.YAMLError):
            continue
        if not config.differences(stored, cfg) and (claim := _claim(file.parent)) is not None:
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


def _place(folder: Path) -> str:
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{quoted}'"


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
    accuracy = job[2].get("eval/accuracy")
    return accuracy is None, -(accuracy or 0.0)


def _open(config: DictConfig, folder: Path, option: str) -> None:
    try:
        trust.check_no_key(OmegaConf.to_yaml(config))  # before Hydra writes it down
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    keep_files_private(config)
    _check_room(folder, option)
    started[:] = [folder]


def _check_room(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(bytes(ROOM))
            probe.flush()
    except OSError as error:
        print(
            f"Cannot write to {folder}: {error.strerror}. Make room, or choose another with `{option}=`.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return artifacts.read_json(dict, file) if file.is_file() else {}
    except RunFolderError:  # of a job that was killed while it wrote, say
        return {}
