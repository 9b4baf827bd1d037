"""The jobs of a sweep: where they are, and how each one ended."""

import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tskd import artifacts, gpus, trust
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
        _open(config, Path(config.hydra.sweep.dir), "hydra.sweep.dir")

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


def of_sweep(folder: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each job in a sweep's folder, best first: by accuracy, failed ones last.

    Its name is what sets it apart, the overrides that not all jobs share; then come its status and its result.
    """
    overrides = {
        file.parents[1]: [str(override) for override in OmegaConf.load(file)]
        for file in sorted(folder.glob("*/.hydra/overrides.yaml"))
    }
    given = list(overrides.values())
    shared = [each for each in given[0] if all(each in others for others in given)] if len(given) > 1 else []
    jobs = []
    for job in overrides:
        name = ",".join(each for each in overrides[job] if each not in shared) or job.name
        jobs.append((name, _read(job / "status.json") or {"status": "unfinished"}, _read(job / "result.json")))
    return sorted(jobs, key=_rank)


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
    return json.loads(file.read_text()) if file.is_file() else {}
