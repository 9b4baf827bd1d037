"""What can go wrong, as a tree. These are mistakes that a user can mend; a caller's bug is a ``ValueError``.

TskdError
├── ConfigError        settings that are wrong or contradict each other
├── TaskError          a seeds, held-out or data file that cannot be used
├── ModelError         a checkpoint or adapter that is missing, or does not belong where it was put
├── RunFolderError     an output folder that cannot be written, read or continued
├── ServerError        a server that does not answer, refuses, or has cost what it may
├── SandboxError       a machine that cannot isolate model-written code
├── OutOfTime          `max_hours` are over
└── NothingToLearn     the algorithm has come to an end without an adapter
    ├── NoNewPrompts       expansion wrote nothing that was not there before
    └── EmptySelection     no response reached the threshold
"""

from typing import Any


class TskdError(Exception):
    """One line that says what happened, with which values, and what to change; it may be made of several such lines."""

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


class ConfigError(TskdError):
    pass


class TaskError(TskdError):
    pass


class ModelError(TskdError):
    pass


class RunFolderError(TskdError):
    pass


class ServerError(TskdError):
    pass


class SandboxError(TskdError):
    pass


class OutOfTime(TskdError):
    pass


class NothingToLearn(TskdError):
    pass


class NoNewPrompts(NothingToLearn):
    pass


class EmptySelection(NothingToLearn):
    pass


def cannot_write(what: Any, error: Exception) -> RunFolderError:
    """What to say where part of a run cannot be put on disk."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return RunFolderError(
        f"Cannot write {what}: {reason}. What was computed before is kept; once it can be written, go on with "
        f"`resume=`."
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
