"""The jobs of a sweep: where they are, and how each one ended."""

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from tskd import artifacts
from tskd.errors import RunFolderError, TskdError

log = logging.getLogger(__name__)
started: list[Path] = []  # the folder of the run or sweep that this process started


class JobStatus(Callback):
    """Notes the folder before Hydra makes it, so that a folder that cannot be written is one line, not a traceback."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _open(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _open(Path(config.hydra.sweep.dir))


def record_failure(folder: Path, error: BaseException) -> None:
    """``error.txt`` with the traceback, ``status.json`` with the one line, and that line in the log."""
    known = isinstance(error, TskdError)
    line = str(error) if known else f"{type(error).__name__}: {error}"
    log.error("%s%s", line, "" if known else f" (traceback in {folder / 'error.txt'})")
    try:
        artifacts.write_text(folder / "error.txt", "".join(traceback.format_exception(error)))
        artifacts.write_json(folder / "status.json", {"status": "failed", "error": line})
    except RunFolderError:
        log.error("%s cannot be written, so the traceback is here:\n%s", folder, traceback.format_exc())


def record_success(folder: Path) -> None:
    (folder / "error.txt").unlink(missing_ok=True)
    artifacts.write_json(folder / "status.json", {"status": "completed"})


def completed(folder: Path) -> bool:
    return _read(folder / "status.json").get("status") == "completed"


def of_sweep(folder: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, status and result of each job in a sweep's folder, best first: by accuracy, failed ones last."""
    jobs = []
    for config in sorted(folder.glob("*/.hydra/overrides.yaml")):
        job = config.parents[1]
        jobs.append((job.name, _read(job / "status.json") or {"status": "unfinished"}, _read(job / "result.json")))
    return sorted(jobs, key=_rank)


def _rank(job: tuple[str, dict[str, Any], dict[str, Any]]) -> tuple[bool, float]:
    accuracy = job[2].get("eval/accuracy")
    return accuracy is None, -(accuracy or 0.0)


def _open(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_text("")
        (folder / ".writable").unlink()
    except OSError as error:
        print(f"Cannot write to {folder}: {error.strerror}. Choose another with `hydra.run.dir=`.", file=sys.stderr)
        raise SystemExit(1) from None
    started[:] = [folder]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
