"""From a Hydra configuration to checked values: the schema, the resolvers, and ``make``."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import get_annotations
from typing import Any, TypeVar, get_type_hints

from omegaconf import MISSING
from pydantic import TypeAdapter, ValidationError

from tskd.errors import ConfigError
from tskd.metrics.faults import FAULTS

Made = TypeVar("Made")


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
    store: Any = "outputs/.store"
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


def _type_of(kind: type, name: str) -> Any:
    """Resolve the type of the field ``name`` alone: others may name what only type checkers import."""
    owner = next(each for each in kind.__mro__ if name in get_annotations(each))
    alone = {"__annotations__": {name: get_annotations(owner)[name]}, "__module__": owner.__module__}
    return get_type_hints(type(owner.__name__, (), alone), include_extras=True)[name]


def make(kind: type[Made], node: Mapping[str, Any], where: str, **given: Any) -> Made:
    """``kind`` made from a configuration node, each value checked against the field's type, and ``given`` objects.

    Raises ``ConfigError`` that lists everything wrong with the node at once.
    """
    if not is_dataclass(kind):
        raise ConfigError(f"`{where}` names {kind!r}, which is no dataclass; its fields are what can be set.")
    if not isinstance(node, Mapping):
        raise ConfigError(f"`{where}` is {node!r}; give settings.")
    settable = {field.name: field for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    values, problems = {}, []
    for key, value in node.items():
        if key not in settable:
            problems.append(f"`{where}.{key}` is unknown; there are {', '.join(settable)}")
            continue
        try:
            values[key] = TypeAdapter(_type_of(kind, key)).validate_python(value)
        except ValidationError as error:
            problems.append(f"`{where}.{key}` is {value!r}: {error.errors()[0]['msg']}")
    for name, known in settable.items():
        if name not in node and known.default is REQUIRED and known.default_factory is REQUIRED:
            problems.append(f"`{where}.{name}` is missing")
    if problems:
        raise ConfigError(*(f"{problem}." for problem in problems))
    return kind(**values, **given)
