"""The rows of a benchmark's published files, each with the place to name when something is wrong with it.

They come from a folder that holds the files as they are published, or from the hub through ``datasets``.
"""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tskd.errors import ConfigError, TaskError

Row = Mapping[str, Any]
Rows = list[tuple[Row, str]]


def json_rows(root: str, name: str, field: str) -> Rows:
    """The objects in the list ``field`` of one JSON object."""
    path, text = _read(root, name)
    content = _parsed(text, str(path))
    rows = content.get(field) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise TaskError(f"{path}: no list `{field}` in it; take the file as it is published.")
    return _objects((row, f"{path}, {field}[{index}]") for index, row in enumerate(rows))


def json_lines(root: str, name: str) -> Rows:
    """The objects of a JSON Lines file."""
    path, text = _read(root, name)
    lines = [(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _objects((_parsed(line, where), where) for line, where in lines)


def csv_rows(root: str, name: str, columns: tuple[str, ...]) -> Rows:
    """The rows of a CSV file whose first line names the ``columns``."""
    path, text = _read(root, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: Rows = []
    try:
        if tuple(next(reader, ())) != columns:
            raise TaskError(
                f"{path}, line 1: the header must be {','.join(columns)}; take the file as it is published."
            )
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if len(values) != len(columns):
                raise TaskError(f"{where}: {len(values)} columns where {len(columns)} belong ({','.join(columns)}).")
            rows.append((dict(zip(columns, values, strict=True)), where))
    except csv.Error as error:
        raise TaskError(f"{path}, line {reader.line_num}: not CSV ({error}).") from None
    return rows


def hub_rows(dataset: str, config: str, split: str) -> Rows:
    """The rows of one split on the hub. Raises ``ConfigError`` where ``datasets`` or the network is missing."""
    remedy = "or set `task.root` (TSKD_DATA) to a folder with the published files"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(
            f"{dataset} comes from the hub, and `datasets` is not installed: pip install 'tskd[benchmarks]', {remedy}."
        ) from None
    try:
        rows = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # the hub's clients raise those of many libraries
        said = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise ConfigError(f"{dataset} cannot be had from the hub ({said}): connect to it, {remedy}.") from error
    return _objects((row, f"{dataset} ({config}), {split}[{index}]") for index, row in enumerate(rows))


def text_of(row: Row, field: str, where: str) -> str:
    """The text in ``field``, with line feeds alone as line ends and no space around it."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: no text in `{field}` (found: {', '.join(map(str, row)) or 'nothing'}).")
    return value.replace("\r\n", "\n").replace("\r", "\n").strip()


def _read(root: str, name: str) -> tuple[Path, str]:
    path = Path(root).expanduser() / name
    try:
        # Line ends within quotes belong to the text, so none are translated here.
        return path, path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise TaskError(
            f"There is no file {path}; `task.root` (TSKD_DATA) is {root!r} and must be the folder that holds {name}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: not JSON ({error}); take the file as it is published.") from None


def _objects(rows: Iterable[tuple[Any, str]]) -> Rows:
    checked: Rows = []
    for row, where in rows:
        if not isinstance(row, Mapping):
            raise TaskError(
                f"{where}: a {type(row).__name__} where an object belongs; take the file as it is published."
            )
        checked.append((row, where))
    return checked
