"""What decides a result, as plain values, and its digest: by it the store and the journal know a result again."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any


def identity(value: Any) -> Any:
    """What of ``value`` decides a result, as plain JSON: settings and contents, not places or progress bars.

    A class that knows better has a method ``identity``, whose result is looked into further.
    """
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return _code(value)
    if isinstance(value, MethodType):
        return identity([value.__func__, value.__self__])
    if hasattr(value, "identity"):
        return identity(value.identity())
    if is_dataclass(value):
        settings = {field.name: identity(getattr(value, field.name)) for field in fields(value) if field.compare}
        return {"class": _code(type(value)), **settings}
    if isinstance(value, partial):
        return {"class": "functools.partial", "of": identity([value.func, value.args, value.keywords])}
    if isinstance(value, Mapping):
        return {str(key): identity(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [identity(each) for each in value]
    if isinstance(value, Path):
        return None
    if callable(value):
        return {"class": _code(type(value)), **identity(getattr(value, "__dict__", {}))}
    return value


def _code(named: type | FunctionType | BuiltinFunctionType) -> str:
    """The name of a class or function, and of one that is not this package's, which has no version here, its file."""
    name = f"{named.__module__}.{named.__qualname__}"
    if named.__module__.partition(".")[0] == __package__:
        return name
    file = getattr(sys.modules.get(named.__module__), "__file__", None)
    return name if file is None else f"{name} {of_file(Path(file))}"


def digest(value: Any) -> str:
    """32 hex digits that name ``value`` by its identity. What has none is taken for another each time."""
    return hashlib.sha256(json.dumps(identity(value), sort_keys=True, default=repr).encode()).hexdigest()[:32]


def of_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def of_adapter(folder: Path) -> dict[str, str]:
    # PEFT writes the base's name and library versions into the other files; the weights and these settings decide.
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: of_file(folder / name) for name in names if (folder / name).is_file()}


@cache
def of_weights(folder: Path) -> str:
    """Of a model's files in a folder: small ones by content, shards of many gigabytes by size and time."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.jinja")]):
        status = file.stat()
        is_small = status.st_size < 2**30
        digest.update(f"{file.name} {status.st_size} {'' if is_small else status.st_mtime_ns}".encode())
        if is_small:
            digest.update(of_file(file).encode())
    return digest.hexdigest()
