"""From a Hydra configuration to checked values: the schema, the resolvers, and ``make``."""

import hashlib
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from tskd import gpus, rehearsal
from tskd.errors import ConfigError, RunFolderError
from tskd.faults import FAULTS

Made = TypeVar("Made")
MAX_FOLDER_NAME = 100
FREE = ("allow", "max_hours", "trainer.devices")  # settings of which a run may have others when it goes on


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

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> "Schema":
        """Raises ``ConfigError`` that lists all that is wrong at the root, what groups lack among it."""
        known = {field.name for field in fields(cls)}
        unknown = [f"`{key}` is unknown; there are {', '.join(sorted(known))}" for key in cfg if key not in known]
        settings = cls(**{str(key): value for key, value in cfg.items() if key in known})
        problems = [*unknown, *settings._problems()]
        if problems:
            raise ConfigError(*(f"{problem}." for problem in problems))
        return settings

    def _problems(self) -> Iterator[str]:
        for group, kinds in _GROUPS.items():
            node = getattr(self, group)
            if node is None and group in _OPTIONAL:
                continue
            if not isinstance(node, Mapping):
                yield f"`{group}` is {'missing' if node == MISSING else repr(node)}; choose one of its options"
                continue
            for key, kind in kinds.items():
                if key not in node:
                    yield f"`{group}.{key}` is missing"
                elif not _is(node[key], kind) or (kind is int and node[key] < 1):
                    yield f"`{group}.{key}` is {node[key]!r}; give {_CALLED[kind]}"
        if isinstance(self.teacher, Mapping) and not self.teacher.keys() & {"adapter", "checkpoint", "lora"}:
            yield "`teacher.adapter` is missing; give one, or choose another `teacher`"
        if isinstance(self.selection, Mapping) and not isinstance(self.selection.get("screen"), Mapping | None):
            yield f"`selection.screen` is {self.selection['screen']!r}; choose one of its options, or null"
        if not (self.threshold == "auto" or _is_number(self.threshold)):
            yield f"`threshold` is {self.threshold!r}; give a number, or auto"
        if self.iterations != "auto" and (not _is(self.iterations, int) or self.iterations < 1):
            yield f"`iterations` is {self.iterations!r}; give a whole number, at least 1, or auto"
        if not (isinstance(self.drop, Sequence) and all(name in FAULTS for name in self.drop)):
            yield f"`drop` is {self.drop!r}; give a list of {', '.join(FAULTS)}, or []"
        if self.max_hours is not None and not (_is_number(self.max_hours) and self.max_hours > 0):
            yield f"`max_hours` is {self.max_hours!r}; give more than 0, or null"
        if not _is(self.seed, int):
            yield f"`seed` is {self.seed!r}; give a whole number"
        if not re.fullmatch(r"[\w.+-]{1,64}", str(self.name)) or str(self.name).startswith("."):
            yield f"`name` is {self.name!r}; use up to 64 letters, digits and . _ + -"
        if not isinstance(self.store, str | None) and self.store is not False:
            yield f"`store` is {self.store!r}; give a folder, or off"
        limit = self.store_limit_gb
        if limit is not None and not (_is_number(limit) and limit >= 0):
            yield f"`store_limit_gb` is {limit!r}; give a number of gigabytes, or null"
        if not isinstance(self.private_files, bool):
            yield f"`private_files` is {self.private_files!r}; give true or false"


# What is read of a group before it is made, by key; the rest is for the class that the group is for.
_GROUPS: Mapping[str, Mapping[str, type]] = {
    "base": {"checkpoint": dict},
    "base_for_scoring": {"checkpoint": dict},
    "teacher": {},
    "target": {"checkpoint": dict},
    "task": {"response_tokens": int},
    "expansion": {},
    "selection": {},
    "training": {"lora": dict, "replay": dict, "each_iteration": bool},
    "trainer": {},
    "engine": {},
    "answer": {},
    "tracking": {},
}
_OPTIONAL = ("base_for_scoring", "engine", "answer")
_CALLED = {dict: "settings", int: "a whole number of at least 1", bool: "true or false"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


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


def of_run(folder: Path, *needed: str) -> DictConfig:
    """What the run in ``folder`` was made with, the ``needed`` groups at least.

    Raises ``RunFolderError`` where there is none, or it cannot be read.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise RunFolderError(f"{folder} holds no run: there is no {file.name} in it.")
    try:
        loaded: Any = OmegaConf.load(file)
        OmegaConf.resolve(loaded)
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error
    lacking = [] if isinstance(loaded, DictConfig) and loaded else ["settings"]
    lacking = lacking or [name for name in needed if loaded.get(name) is None]
    if lacking or not isinstance(loaded, DictConfig):
        raise RunFolderError(f"{file} has no {', '.join(lacking)}; take the file as the run has written it.")
    return loaded


def make(kind: type[Made], node: Mapping[str, Any], where: str, **given: Any) -> Made:
    """``kind`` made from a configuration node, each value checked against the field's type, and ``given`` objects.

    Raises ``ConfigError`` that lists everything wrong with the node at once.
    """
    if not is_dataclass(kind):
        raise ConfigError(f"`{where}` names {kind!r}, which is no dataclass; its fields are what can be set.")
    if not isinstance(node, Mapping):
        raise ConfigError(f"`{where}` is {node!r}; give settings.")
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
        raise ConfigError(*(f"{problem}." for problem in problems))
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
