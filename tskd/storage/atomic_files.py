"""Files that are there whole or not at all, and how records are read from them."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tskd.errors import RunFolderError, cannot_write

MAX_FOLDER_NAME = 100


def short_name(text: str, otherwise: Any = "") -> str:
    """A folder name that says ``text``: no separators, and a digest in the place of what is too much."""
    safe = re.sub(r"[^\w.,=+-]+", "_", text).strip("._") or str(otherwise)
    if len(safe) <= MAX_FOLDER_NAME and safe == text:
        return safe
    # Two texts must not share a folder because their odd characters were replaced.
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: MAX_FOLDER_NAME - 9]}-{digest}" if text else safe


Record = TypeVar("Record")


def write_text(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise cannot_write(file, error) from error


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
