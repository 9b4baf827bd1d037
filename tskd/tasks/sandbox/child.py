"""What ``isolated_tests`` starts for one verdict, without installed packages and so with the standard library alone.

    watcher          makes the namespaces, keeps the wall clock, leaves when everything below it is dead
    └── tests        evaluates the tests and writes the verdict
        └── code     runs the code, and answers what the tests ask of it

The last two talk in lines of JSON. The tests hold the expected values, the code is asked for its own: a line such as
``assert f(2) == 4`` sends ``f`` and ``2`` and compares what comes back, in a process that the code cannot see.
"""

import ast
import builtins
import contextlib
import json
import operator
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from tskd.tasks.sandbox.walls import (
    OPEN_FILES,
    build_jail,
    confine,
    die_with_parent,
    enter_namespaces,
    split_off_processes,
)

Report = dict[str, Any]


def main(settings: str, folder: str, mode: str) -> None:
    """Read ``{"solution", "setup", "tests"}`` from standard input; write lines, of which the first is the verdict.

    It has a "reason", and "passed" if so; or, where the mode is "isolated" and that cannot be had, "unavailable".
    """
    limits, isolated = json.loads(settings), mode == "isolated"
    os.environ.clear()
    die_with_parent()
    if isolated:
        try:
            enter_namespaces()
            build_jail(folder, limits["file_bytes"])
        except OSError as error:
            _report({"unavailable": str(error)})
            return
    tests = _spawn(lambda: _report(_tests(limits, isolated)))
    late = _killed(tests, limits["wall_seconds"])
    # For when the tests could not write theirs.
    _report({"reason": f"timed out: {limits['wall_seconds']:g} s" if late else "ended early: no verdict"})
    if not isolated:
        os.killpg(0, signal.SIGKILL)


# --- processes -------------------------------------------------------------------------------------------------------


def _spawn(work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    try:
        work()
    finally:
        os._exit(0)


def _killed(process: int, seconds: float) -> bool:
    """Wait for the process: whether it had to be killed. It is gone, and so is all of its process namespace."""

    def expire(*_: object) -> NoReturn:
        raise TimeoutError

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        os.waitpid(process, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        return True
    return False


def _report(report: Report) -> None:
    os.write(1, json.dumps(report).encode() + b"\n")


# --- the tests' side -------------------------------------------------------------------------------------------------


class Ended(Exception):
    """The code's process is gone."""


class Raised(Exception):
    """The code raised ``kind``, and it said so."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Code:
    """The other process, seen from the tests."""

    def __init__(self, process: int, requests: int, answers: int) -> None:
        self._process = process
        self._requests = os.fdopen(requests, "w")
        self._answers = os.fdopen(answers)

    def ask(self, operation: str, *operands: object) -> Any:
        question = json.dumps(pack([operation, *operands], _name_of))
        with contextlib.suppress(BrokenPipeError):
            print(question, file=self._requests, flush=True)
        line = self.line()
        if not line.endswith("\n"):
            raise Ended
        try:
            answer = json.loads(line)
            if "value" in answer:
                return unpack(answer["value"], lambda name: Remote(self, name))
            kind, message = map(str, answer["raised"])
        except (TypeError, ValueError, LookupError) as error:
            raise Raised("Forged", "what came from the code is not what an answer looks like") from error
        raise Raised(kind, message)

    def line(self) -> str:
        return self._answers.readline()

    def end(self, cpu_seconds: int) -> str:
        os.kill(self._process, signal.SIGKILL)
        _, status, usage = os.wait4(self._process, 0)
        code = os.waitstatus_to_exitcode(status)
        # The kernel counts a little otherwise where it enforces the limit.
        if code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime > 0.9 * cpu_seconds:
            return f"timed out: {cpu_seconds} s of CPU"
        return f"ended early: signal {-code}" if code < 0 else f"ended early: exit status {code}"


class Remote:
    """An object that stays with the code. It equals nothing, for the code would be the judge of that."""

    # With names that the object itself will hardly have.
    __slots__ = ("_remote_code", "_remote_name")
    _remote_code: Code
    _remote_name: str | int

    def __init__(self, code: Code, name: str | int) -> None:
        object.__setattr__(self, "_remote_code", code)
        object.__setattr__(self, "_remote_name", name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._remote_code.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._remote_code.ask("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._remote_code.ask("setattr", self, name, value)

    def __getitem__(self, key: object) -> Any:
        return self._remote_code.ask("getitem", self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._remote_code.ask("list", self))

    def __bool__(self) -> bool:
        return bool(self._remote_code.ask("bool", self))


def _tests(limits: dict[str, Any], isolated: bool) -> Report:
    try:
        if isolated:
            split_off_processes()
        from_tests, requests = os.pipe()
        answers, to_tests = os.pipe()
        code = Code(_spawn(lambda: _code(from_tests, to_tests, limits, isolated)), requests, answers)
        os.close(from_tests)
        os.close(to_tests)
        confine(limits, isolated)
    except OSError as error:
        return {"unavailable": str(error)}
    if (ready := code.line()) != "\n":
        return {"unavailable": ready.strip() or "the process of the code did not start"}
    # Not sooner, for the code's process began as a copy of this one.
    with open(0) as stdin:
        task = json.load(stdin)
    try:
        _evaluate(code, **task)
    except Ended:
        return {"reason": code.end(limits["cpu_seconds"])}
    except Raised as error:
        reasons = {"MemoryError": "memory", "SystemExit": f"ended early: {error}"}
        return {"reason": reasons.get(error.kind, f"failed: {error}")}
    except MemoryError:
        return {"reason": "memory"}
    except BaseException as error:  # noqa: BLE001 (whatever a test raises, it has not passed)
        return {"reason": f"failed: {type(error).__name__}: {error}"}
    return {"passed": True, "reason": "passed"}


def _evaluate(code: Code, solution: str, setup: str, tests: list[str]) -> None:
    defined = set(code.ask("load", solution, setup))
    names: dict[str, Any] = {}
    _execute(setup, names, code, defined)
    for test in tests:
        try:
            _execute(test, dict(names), code, defined)
        except AssertionError as error:
            raise AssertionError(str(error) or test) from error


def _execute(text: str, names: dict[str, Any], code: Code, defined: set[str]) -> None:
    """Execute the text, in which unknown names are the code's, and those of the standard library are not.

    Else code could bring a ``set`` of its own for ``set(f(1)) == set([1, 2])``. Where all names are the library's, as
    in ``sum(10, 15) == 6``, those that the code defines are the code's.
    """
    mentioned = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    used = {node.id for node in mentioned} - {node.id for node in mentioned if isinstance(node.ctx, ast.Store)}
    used -= names.keys()
    library = used & (sys.stdlib_module_names | set(dir(builtins)))
    asked = (used - library) or (used & defined)
    names |= {name: Remote(code, name) for name in asked}
    names |= {name: import_module(name) for name in (library - asked) & sys.stdlib_module_names}
    exec(compile(text, "tests", "exec"), names)


def _name_of(value: object) -> str | int:
    if isinstance(value, Remote):
        return value._remote_name
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and getattr(builtins, name, None) is value:
        return name
    raise TypeError(f"the tests cannot hand a {type(value).__name__} to the code")


# --- the code's side -------------------------------------------------------------------------------------------------


def _code(requests: int, answers: int, limits: dict[str, Any], isolated: bool) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    for other in {*range(3, OPEN_FILES)} - {requests, answers}:
        with contextlib.suppress(OSError):
            os.close(other)
    with os.fdopen(requests) as questions, os.fdopen(answers, "w") as replies:
        try:
            confine(limits, isolated)
        except OSError as error:
            print(error, file=replies, flush=True)
            return
        print(file=replies, flush=True)
        for reply in _replies(questions):
            print(reply, file=replies, flush=True)


def _replies(questions: Iterable[str]) -> Iterator[str]:
    module = ModuleType("solution")
    sys.modules[module.__name__] = module
    names = vars(module)
    kept: list[object] = []

    def load(solution: str, setup: str) -> list[str]:
        exec(compile(solution, "solution.py", "exec"), names)
        exec(compile(setup, "setup.py", "exec"), names)
        return list(names)

    def named(name: str | int) -> object:
        return kept[name] if isinstance(name, int) else eval(name, names)

    def keep(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    operations: dict[str, Callable[..., object]] = {
        "load": load,
        "call": lambda function, args, kwargs: function(*args, **kwargs),
        "getattr": getattr,
        "setattr": setattr,
        "getitem": operator.getitem,
        "list": list,
        "bool": bool,
    }
    for question in questions:
        try:
            operation, *operands = unpack(json.loads(question), named)
            reply = json.dumps({"value": pack(operations[operation](*operands), keep)})
        except MemoryError:
            # There may be none left to say more.
            reply = '{"raised": ["MemoryError", ""]}'
        except BaseException as error:  # noqa: BLE001 (the tests' side judges it)
            reply = json.dumps({"raised": [type(error).__name__, str(error)]})
        yield reply


# --- values ----------------------------------------------------------------------------------------------------------


def pack(value: object, name_of: Callable[[object], str | int]) -> Any:
    """JSON that ``unpack`` makes the same value of, with plain types in place of those derived from them.

    Nothing but plain types comes out at the other end, whatever the JSON says, which is more than pickle can promise.
    """
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return {"int": hex(value)}  # decimals have a limit of length
    if isinstance(value, list):
        return [pack(item, name_of) for item in value]
    for plain in (tuple, set, frozenset):
        if isinstance(value, plain):
            return {plain.__name__: [pack(item, name_of) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, name_of), pack(item, name_of)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    return {"object": name_of(value)}


def unpack(packed: Any, named: Callable[[str | int], object]) -> Any:
    """The value of ``packed``; ``named`` gives those that have only a name on this side."""
    if isinstance(packed, list):
        return [unpack(item, named) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, body),) = packed.items()
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(body, named))
    if kind == "dict":
        return {unpack(key, named): unpack(item, named) for key, item in body}
    makers: dict[str, Callable[..., object]] = {
        "int": lambda digits: int(digits, 16),
        "bytes": bytes.fromhex,
        "complex": lambda parts: complex(*parts),
        "range": lambda bounds: range(*bounds),
        "object": named,
    }
    return makers[kind](body)
