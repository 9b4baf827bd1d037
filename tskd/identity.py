"""What decides a result, as plain values, and its digest: by it the store and the journal know a result again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any


def identity(value: Any) -> Any:
    """What of ``value`` decides a result, as plain JSON: settings and contents, not places or progress bars.

    A class that knows better has a method ``identity``, whose result is looked into further.
    """
    if not isinstance(value, type) and hasattr(value, "identity"):
        return identity(value.identity())
    if is_dataclass(value) and not isinstance(value, type):
        settings = {field.name: identity(getattr(value, field.name)) for field in fields(value) if field.compare}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **settings}
    if isinstance(value, Mapping):
        return {str(key): identity(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [identity(each) for each in value]
    if isinstance(value, Path) or callable(value):
        return None
    return value


def digest(value: Any) -> str:
    """32 hex digits that name ``value`` by its identity."""
    return hashlib.sha256(json.dumps(identity(value), sort_keys=True).encode()).hexdigest()[:32]


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
