"""What can go wrong, as a tree. Users can fix these errors; a bug of the caller is a ``ValueError``.

TskdError
├── ConfigError        settings that are wrong or contradict each other
├── TaskError          a seeds, held-out or data file that cannot be used
├── ModelError         a checkpoint or adapter that is missing, damaged or does not fit
├── RunFolderError     an output folder that cannot be written, read or continued
├── ServerError        a server that does not answer, refuses, or has used up its budget
├── SandboxError       a machine that cannot isolate model-written code
├── OutOfTime          `max_hours` is over
└── NothingToLearn     the algorithm ended without an adapter
    ├── NoNewPrompts       expansion wrote no new prompt
    └── EmptySelection     selection kept no response
"""

from collections.abc import Sequence
from typing import Any


class TskdError(Exception):
    """A line that says what happened, with which values, and what to change. Each argument is one such line."""

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


class ConfigError(TskdError):
    """Settings are wrong or contradict each other."""


class TaskError(TskdError):
    """A seeds, held-out or data file cannot be used."""


class ModelError(TskdError):
    """A checkpoint or adapter is missing, damaged or does not fit."""


class RunFolderError(TskdError):
    """An output folder cannot be written, read or continued."""


class ServerError(TskdError):
    """A server does not answer, refuses, or has used up its budget."""


class SandboxError(TskdError):
    """This machine cannot isolate model-written code."""


class OutOfTime(TskdError):
    """`max_hours` is over."""


class NothingToLearn(TskdError):
    """The algorithm ended without an adapter."""


class NoNewPrompts(NothingToLearn):
    """Expansion wrote no new prompt."""


class EmptySelection(NothingToLearn):
    """Selection kept no response."""


def cannot_write(what: Any, error: Exception) -> RunFolderError:
    """Return the error for ``what``, a part of a run, that cannot be written because of ``error``."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return RunFolderError(
        f"Cannot write {what}: {reason}. What was computed before is kept; once it can be written, go on with "
        f"`resume=`."
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def merged(errors: Sequence[TskdError]) -> TskdError:
    """Return one error with the lines of all ``errors``, of the class of the first."""
    return type(errors[0])(*dict.fromkeys(line for error in errors for line in error.args))
