"""Asked to stop, by Ctrl-C, by a scheduler or by its own time limit, a run does so where nothing is lost.

Long work calls ``check`` between its batches, when the last one is on disk. A second Ctrl-C stops at once, and so does
what nobody can ask, ``kill -9``; then the batch in flight is lost.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tskd.errors import OutOfTime

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last is what Slurm's `--signal=USR1@60` sends
OURS_TO_HANDLE = (signal.SIG_DFL, signal.default_int_handler)  # submitit has handlers of its own, which requeue the job
_asked: signal.Signals | None = None
_hours = _end = math.inf


class Interrupted(SystemExit):
    """A signal has asked for it; the exit code is 128 and its number, 130 for Ctrl-C, as shells have it."""

    def __init__(self, asked: signal.Signals) -> None:
        super().__init__(128 + asked)
        self.signal = asked

    def __str__(self) -> str:
        return f"Stopped by {self.signal.name}, with all that was finished saved"


def check() -> None:
    """Raise ``Interrupted`` or ``OutOfTime`` where the run has been asked to stop, or its time is over."""
    if _asked is not None:
        raise Interrupted(_asked)
    if time.monotonic() >= _end:
        raise OutOfTime(f"Stopped after {_hours:g} hours (`max_hours`), with all that was finished saved")


def after(hours: float | None) -> None:
    """Have ``check`` raise in so many hours; with ``None``, never."""
    global _hours, _end
    _hours = math.inf if hours is None else hours
    _end = time.monotonic() + 3600 * _hours


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Within, signals are noted for ``check``. Those that somebody else handles are left to them.

    Once there was one, this stays so: the next job of a sweep must not begin, and a second Ctrl-C is still one.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS if is_main and signal.getsignal(each) in OURS_TO_HANDLE}
    try:
        for each in before:
            signal.signal(each, _note)
        yield
    finally:
        for each, handler in before.items() if _asked is None else ():
            signal.signal(each, handler)
        after(None)


def _note(number: int, _: Any) -> None:
    global _asked
    if _asked is not None and number == signal.SIGINT:
        os._exit(128 + number)
    if _asked is None:
        _asked = signal.Signals(number)
        # Not by a logger, for one may be just writing.
        os.write(2, b"\nStopping once the batch is finished and saved; Ctrl-C stops at once.\n")
