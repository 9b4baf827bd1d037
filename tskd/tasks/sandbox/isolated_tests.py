"""Whether model-written code passes its tests, without letting it near anything else.

A pass cannot be had otherwise than by answering right. The code runs in one process; the tests, and with them the
expected values, are in another, which asks for values and compares them itself. What crosses between the two is data of
plain types. So leaving early, printing, redefining ``AssertionError`` or ``__eq__``, looking through memory and writing
into the pipe bring nothing: the code does not know what it would have to say.

On Linux, the two are shut in, by namespaces and without privileges: no network, an empty environment, no files but the
interpreter's own libraries (read-only) and an empty folder in memory, no other processes, limits on time, memory, files
and processes. When the verdict is there, nothing that the code started is left.

What is not guarded against: errors in the kernel; memory taken by several processes at once, for the limit is for each;
and tests that leave the judgement to the code. Names that are not from ``setup``, built in, or modules of the standard
library are the code's, so that ``assert isclose(f(1), 2)`` would be asked of it. With ``unsandboxed=True`` there is no
more than the limits, the empty environment and a temporary folder: the code can read and write what the user can, send
it anywhere, tamper with the process of the tests, and leave processes behind.

What honest code may miss: packages outside the standard library; arguments are copies, so that tests do not see them
changed; functions, for tests can hand it none but the built-in ones; and objects that are not of plain types (numbers,
strings, bytes, tuples, lists, dicts, sets, ranges) can be called, iterated over and handed back by the tests, but equal
nothing.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tskd.errors import SandboxError

if TYPE_CHECKING:  # it runs in a process of its own; named here, its code counts in the key of a result
    from tskd.tasks.sandbox import child  # noqa: F401

ROOT = Path(__file__).parents[3]
# Appended, so that nothing there hides the standard library; taken away, so that the code imports nothing from it.
START = (
    "import sys; sys.path.append(sys.argv[1]); from tskd.tasks.sandbox.child import main; sys.path.pop(); "
    "main(*sys.argv[2:])"
)
GRACE_SECONDS = 10
REASON_LENGTH = 200


@dataclass(frozen=True)
class Limits:
    """What the code may use: CPU and memory are for each of its processes, of which it is the first; files for all."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 2**30
    file_bytes: int = 2**20
    processes: int = 8

    def __post_init__(self) -> None:
        if not all(value > 0 for value in asdict(self).values()):
            raise ValueError(f"limits are more than 0: {self}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` is a line: "passed", or begins with "failed", "timed out", "memory" or "ended early"."""

    passed: bool
    reason: str


def check_available() -> None:
    """Return where this machine can isolate code; raise ``SandboxError``, which says what is missing, where not."""
    run_tests("", ["assert True"])


def run_tests(
    code: str, tests: Sequence[str], setup: str = "", *, limits: Limits = Limits(), unsandboxed: bool = False
) -> Verdict:
    """The verdict on ``code``: whether it runs, then ``setup``, then each of ``tests`` (statements, usually asserts).

    ``setup`` runs on both sides: code can use its names, and tests its imports and functions. Raises ``SandboxError``
    where this machine cannot isolate code, unless ``unsandboxed``. Safe to call from several threads.
    """
    if not tests:
        raise ValueError("without tests, any code would pass")
    if not unsandboxed and sys.platform != "linux":
        raise _unavailable(f"that needs Linux, and this is {sys.platform}")
    task = json.dumps({"solution": code, "setup": setup, "tests": list(tests)}).encode()
    with TemporaryDirectory(prefix="tskd-sandbox-", ignore_cleanup_errors=True) as folder:
        report = _report(_command(limits, folder, unsandboxed), task, folder, limits.wall_seconds + GRACE_SECONDS)
    if "unavailable" in report:
        raise _unavailable(report["unavailable"])
    return Verdict("passed" in report, _line(report["reason"]))


def _command(limits: Limits, folder: str, unsandboxed: bool) -> list[str]:
    # Together as isolated as -I, except that PYTHONHASHSEED is heeded.
    python = [sys.executable, "-P", "-s", "-S"]
    mode = "unsandboxed" if unsandboxed else "isolated"
    return [*python, "-c", START, str(ROOT), json.dumps(asdict(limits)), folder, mode]


def _report(command: list[str], task: bytes, folder: str, seconds: float) -> dict[str, Any]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        # A fixed seed gives sets of strings the same order, and so code that depends on it the same verdict, each time.
        env={"PYTHONHASHSEED": "0"},
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(task, seconds)
        except subprocess.TimeoutExpired:
            return {"reason": f"timed out: {seconds:g} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if out:
        # The tests' line comes before the watcher's, which is there for when they could not write theirs.
        report: dict[str, Any] = json.loads(out.splitlines()[0])
        return report
    # Without isolation, code can kill the watcher too.
    return {"unavailable": err.decode(errors="replace")} if err else {"reason": "ended early: no verdict"}


def _unavailable(reason: str) -> SandboxError:
    return SandboxError(
        f"Cannot isolate model-written code: {_line(reason[-REASON_LENGTH:])}. It takes Linux 5.14 or newer, and user "
        "namespaces, which some systems (sysctl kernel.apparmor_restrict_unprivileged_userns and "
        "user.max_user_namespaces) and containers turn off. Allow them, or run it elsewhere."
    )


def _line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).strip()[:REASON_LENGTH]
