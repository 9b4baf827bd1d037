"""From a Hydra configuration to checked values: the schema, the resolvers, and ``make``."""

import hashlib
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from pydantic import TypeAdapter, ValidationError

from tskd import gpus, rehearsal
from tskd.errors import ConfigError
from tskd.faults import FAULTS

Made = TypeVar("Made")
MAX_FOLDER_NAME = 100
FREE = ("max_hours",)  # settings of which a run may have others when it goes on


@dataclass
class Schema:
    """The root of the configuration. Groups are open here; ``make`` checks each against the class that it is for."""

    base: Any = MISSING
    base_for_scoring: Any = None
    teacher: Any = MISSING
    target: Any = MISSING
    task: Any = MISSING
    expansion: Any = MISSING
    selection: Any = MISSING
    training: Any = MISSING
    trainer: Any = MISSING
    engine: Any = None
    answer: Any = None
    tracking: Any = MISSING
    threshold: Any = MISSING
    iterations: Any = MISSING
    stop: dict[str, Any] = field(default_factory=dict)
    seed: int = MISSING
    name: str = MISSING
    store: Any = None
    store_limit_gb: float | None = None
    allow: Any = ()
    private_files: bool = True
    drop: Any = ("not_finite",)
    max_hours: float | None = None

    def check(self) -> None:
        problems = []
        is_number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not (self.threshold == "auto" or (is_number and math.isfinite(self.threshold))):
            problems.append(f"`threshold` is {self.threshold!r}; give a number, or auto")
        is_count = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        if not (self.iterations == "auto" or (is_count and self.iterations >= 1)):
            problems.append(f"`iterations` is {self.iterations!r}; give a whole number, at least 1, or auto")
        if not (isinstance(self.drop, Sequence) and all(name in FAULTS for name in self.drop)):
            problems.append(f"`drop` is {self.drop!r}; give a list of {', '.join(FAULTS)}, or []")
        if self.max_hours is not None and not self.max_hours > 0:
            problems.append(f"`max_hours` is {self.max_hours:g}; give more than 0, or null")
        if not re.fullmatch(r"[\w.+-]{1,64}", self.name) or self.name.startswith("."):
            problems.append(f"`name` is {self.name!r}; use up to 64 letters, digits and . _ + -")
        if problems:
            raise ConfigError("; ".join(problems) + ".")


def register() -> None:
    """Make schema and resolvers known to Hydra; may be called again."""
    ConfigStore.instance().store(name="schema", node=Schema)
    OmegaConf.register_new_resolver("started", _started, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("short", short_name, replace=True)
    OmegaConf.register_new_resolver("gpus", lambda: len(gpus.names()) or 2, replace=True)
    OmegaConf.register_new_resolver("rehearsal", _stand_in, replace=True)


def folder() -> str:
    """The folder of the configuration files, in a checkout and in an installed package."""
    here = Path(__file__).resolve().parent
    for candidate in (here.parent / "conf", here / "conf"):
        if (candidate / "config.yaml").is_file():
            return str(candidate)
    raise ConfigError(f"No conf/config.yaml beside or in {here}; install tskd again.")


def make(kind: type[Made], node: Mapping[str, Any], where: str, **given: Any) -> Made:
    """``kind`` made from a configuration node, each value checked against the field's type, and ``given`` objects.

    Raises ``ConfigError`` that lists everything wrong with the node at once.
    """
    if not is_dataclass(kind):
        raise ConfigError(f"`{where}` names {kind!r}, which is no dataclass; its fields are what can be set.")
    hints = get_type_hints(kind, include_extras=True)
    settable = {field.name: field for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    values, problems = {}, []
    for key, value in node.items():
        if key not in settable:
            problems.append(f"`{where}.{key}` is unknown; there are {', '.join(settable)}")
            continue
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            problems.append(f"`{where}.{key}` is {value!r}: {error.errors()[0]['msg']}")
    for name, known in settable.items():
        if name not in node and known.default is REQUIRED and known.default_factory is REQUIRED:
            problems.append(f"`{where}.{name}` is missing")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return kind(**values, **given)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The names of the settings that differ in a way that may change results, as dotted keys."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if one == other or where in FREE else [where]
    keys = dict.fromkeys((*one, *other))
    return [
        name
        for key in keys
        for name in differences(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    ]


def short_name(text: str, otherwise: Any = "") -> str:
    """A folder name that says ``text``: no separators, and a digest in the place of what is too much."""
    safe = re.sub(r"[^\w.,=+-]+", "_", text).strip("._") or str(otherwise)
    if len(safe) <= MAX_FOLDER_NAME and safe == text:
        return safe
    # Two texts must not share a folder because their odd characters were replaced.
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: MAX_FOLDER_NAME - 9]}-{digest}" if text else safe


def _stand_in(architecture: str, name: str) -> str:
    return rehearsal.stand_in(architecture, short_name(name))


def _started() -> str:
    # Two sweeps that start in the same second must not share a folder.
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid():x}{secrets.token_hex(1)}"
