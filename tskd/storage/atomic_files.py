"""Write files and folders whole or not at all, and read records from them."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tskd.errors import RunFolderError, cannot_write

MAX_FOLDER_NAME = 100


def short_name(text: str, otherwise: Any = "") -> str:
    """Return a folder name for ``text``: without separators, and with a digest if it is too long."""
    safe = re.sub(r"[^\w.,=+-]+", "_", text).strip("._") or str(otherwise)
    if len(safe) <= MAX_FOLDER_NAME and safe == text:
        return safe
    # Two texts must not share a folder because their odd characters were replaced.
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: MAX_FOLDER_NAME - 9]}-{digest}" if text else safe


Record = TypeVar("Record")


def room_beside(goal: Path) -> TemporaryDirectory[str]:
    """Make a hidden folder beside ``goal``, from which a file or folder can be moved there."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    return TemporaryDirectory(dir=goal.parent, prefix=f".{goal.name}-", ignore_cleanup_errors=True)


def put(partial: Path, goal: Path, keep: bool = False) -> None:
    """Move a written file or folder to ``goal``.

    Args:
        partial: what was written, in ``room_beside(goal)``.
        goal: what is replaced.
        keep: whether to keep a folder ``goal`` that another process has made meanwhile.
    """
    for file in partial.rglob("*") if partial.is_dir() else [partial]:
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())  # some file systems report only now that they are full
    if goal.is_dir() and not keep:
        shutil.rmtree(goal)
    try:
        partial.replace(goal)
    except OSError:
        if not (keep and goal.is_dir()):
            raise


@contextmanager
def replacing(goal: Path) -> Iterator[Path]:
    """Yield a path to write a file or folder to, and move it to ``goal`` when it is whole.

    If an error is raised meanwhile, ``goal`` stays as it was, and nothing else is left.
    """
    with room_beside(goal) as room:
        partial = Path(room, "partial")
        yield partial
        put(partial, goal)


@contextmanager
def write_errors(what: Any) -> Iterator[None]:
    """Raise ``RunFolderError`` with ``what`` and the reason if it cannot be written."""
    try:
        yield
    except Exception as error:
        # torch raises RuntimeError on a full disk, and safetensors, which is not loaded here, an error of its own.
        if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
            raise cannot_write(what, error) from error
        raise


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
    """
    with write_errors(file), replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def copy_folder(source: Path, goal: Path) -> None:
    """Copy a folder whole or not at all, in the place of ``goal``.

    Raises:
        OSError: it cannot be read or written.
    """
    with replacing(goal) as partial:
        shutil.copytree(source, partial)


def write_json(file: Path, record: Any) -> None:
    write_text(file, json.dumps(record if isinstance(record, dict) else asdict(record), indent=2) + "\n")


def write_lines(file: Path, records: Iterable[Any]) -> None:
    write_text(file, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_json(kind: type[Record], file: Path) -> Record:
    return _parse(kind, _text(file), str(file))


def read_lines(kind: type[Record], file: Path) -> list[Record]:
    return [_parse(kind, line, f"{file}, line {number}") for number, line in enumerate(_text(file).splitlines(), 1)]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"Cannot read {file}: {error}.") from error


@cache
def _adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parse(kind: type[Record], text: str, where: str) -> Record:
    try:
        return _adapter_of(kind).validate_python(json.loads(text))  # type: ignore[no-any-return, arg-type]
    except (ValueError, RecursionError) as error:  # of pydantic and of json
        raise RunFolderError(f"{where} is no {kind.__name__}: {' '.join(str(error).split())[:200]}") from error
