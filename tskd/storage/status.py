"""How a job ended: its lock, ``status.json`` and ``error.txt``."""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tskd.errors import OutOfTime, RunFolderError, TskdError
from tskd.runtime import interrupts, secrets
from tskd.storage import atomic_files

log = logging.getLogger(__name__)


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
    atomic_files.write_json(folder / "status.json", {"status": "unfinished"})
    (folder / "error.txt").unlink(missing_ok=True)


def record_stop(folder: Path, reason: BaseException | str) -> None:
    """A run that was asked to stop has not failed. Raises ``SystemExit`` where that cannot be written."""
    log.warning("%s; go on with `resume=%s`.", reason, folder)
    try:
        atomic_files.write_json(folder / "status.json", {"status": "stopped", "error": f"{reason}."})
    except RunFolderError as error:
        log.error("%s", error)
        raise SystemExit(1) from None


def record_failure(folder: Path, error: BaseException) -> None:
    """``error.txt`` with the traceback, ``status.json`` with the one line, and that line in the log.

    Where they cannot be written, only the exit code is left to tell: raises ``SystemExit``, which ends a sweep too.
    """
    known = isinstance(error, TskdError)
    line = secrets.hidden(str(error) if known else f"{type(error).__name__}: {error}")
    log.error("%s%s", line, "" if known else f" (traceback in {folder / 'error.txt'})")
    trace = secrets.hidden("".join(traceback.format_exception(error)))
    try:
        atomic_files.write_text(folder / "error.txt", trace)
        atomic_files.write_json(folder / "status.json", {"status": "failed", "error": line})
    except RunFolderError:
        if not known:
            log.error("%s cannot be written, so the traceback is here:\n%s", folder, trace)
        raise SystemExit(1) from None


def record_success(folder: Path) -> None:
    """``status.json`` alone. Raises ``SystemExit`` where it cannot be written."""
    try:
        atomic_files.write_json(folder / "status.json", {"status": "completed"})
        (folder / "error.txt").unlink(missing_ok=True)
    except (RunFolderError, OSError) as error:
        log.error("%s", error)
        raise SystemExit(1) from None


def completed(folder: Path) -> bool:
    return _read(folder / "status.json").get("status") == "completed"


def _read(file: Path) -> dict[str, Any]:
    try:
        return atomic_files.read_json(dict, file) if file.is_file() else {}
    except RunFolderError:  # of a job that was killed while it wrote, say
        return {}


Outcome = TypeVar("Outcome")


def with_status(folder: Path, work: Callable[[], Outcome]) -> Outcome | None:
    """What ``work`` gives, and a note of how it ended. An ordinary failure is noted, not raised, and gives ``None``:
    the next job of a sweep goes on."""
    with alone(folder), interrupts.heeding_signals():
        try:
            record_start(folder)
            interrupts.check()
            outcome = work()
        except (OutOfTime, interrupts.Interrupted) as reason:
            record_stop(folder, reason)
            if isinstance(reason, interrupts.Interrupted):
                raise
        except Exception as error:  # noqa: BLE001 (whatever it is, it belongs into the job's own record)
            record_failure(folder, error)
        except BaseException:  # submitit's, say, which has Slurm queue the job again
            record_stop(folder, "Stopped at once, with all that was finished saved")
            raise
        else:
            record_success(folder)
            return outcome
    return None
