"""Check a configuration: its root by the types of ``Schema``, each group by the fields of the class that it names."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import get_annotations
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from omegaconf import MISSING
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, StrictBool, StrictInt, StrictStr, TypeAdapter
from pydantic import ValidationError as Invalid
from pydantic_core import PydanticCustomError, core_schema

from tskd.errors import ConfigError
from tskd.metrics.faults import FAULTS

Made = TypeVar("Made")
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[StrictInt, Field(ge=1)]
Name = Annotated[str, Field(strict=True, pattern=r"^[\w+-][\w.+-]{0,63}$")]
Option = Mapping[str, Any]


class Takes:
    """Check a setting by a type of pydantic's, and say in an error what to ``give``. OmegaConf sees a plain type."""

    def __init__(self, kind: Any, give: str, required: bool = True) -> None:
        self.kind, self.give, self.required = kind, give, required

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return self.schema(handler)

    def schema(self, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._checked, handler.generate_schema(self.kind))

    def _checked(self, value: Any, check: Callable[[Any], Any]) -> Any:
        try:
            return check(value)
        except Invalid:
            raise PydanticCustomError("setting", "{give}", {"give": self.give}) from None


class Group:
    """Check that a group is an option with ``keys``, or if ``optional`` null; what else it has is for its class."""

    def __init__(self, optional: bool = False, **keys: Takes) -> None:
        self.optional, self.keys = optional, keys

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        keys = {
            key: core_schema.typed_dict_field(takes.schema(handler), required=takes.required)
            for key, takes in self.keys.items()
        }
        option = core_schema.typed_dict_schema(keys, extra_behavior="allow")
        return core_schema.no_info_wrap_validator_function(self._checked, option)

    def _checked(self, value: Any, check: Callable[[Any], Any]) -> Any:
        if value is None and self.optional:
            return None
        if not isinstance(value, Mapping):
            raise PydanticCustomError("setting", "choose one of its options")
        return check(value)


SETTINGS = Takes(Option, "give settings")
MODEL = Group(checkpoint=SETTINGS)
YES_OR_NO = Takes(StrictBool, "give true or false")
AT_LEAST_ONE = Takes(Whole, "give a whole number of at least 1")
SCREEN = Takes(Option | None, "choose one of its options, or null", required=False)
OPTION = Group()
OPTIONAL = Group(optional=True)
FAULT = Literal[tuple(FAULTS)]  # type: ignore[valid-type]


@dataclass
class Schema:
    """The root of the configuration."""

    __pydantic_config__ = ConfigDict(extra="forbid", validate_default=True)

    base: Annotated[Any, MODEL] = MISSING
    base_for_scoring: Annotated[Any, Group(optional=True, checkpoint=SETTINGS)] = None
    teacher: Annotated[Any, OPTION] = MISSING
    target: Annotated[Any, MODEL] = MISSING
    task: Annotated[Any, Group(response_tokens=AT_LEAST_ONE)] = MISSING
    expansion: Annotated[Any, OPTION] = MISSING
    selection: Annotated[Any, Group(screen=SCREEN)] = MISSING
    training: Annotated[Any, Group(lora=SETTINGS, replay=SETTINGS, each_iteration=YES_OR_NO)] = MISSING
    trainer: Annotated[Any, OPTION] = MISSING
    engine: Annotated[Any, OPTIONAL] = None
    answer: Annotated[Any, OPTIONAL] = None
    tracking: Annotated[Any, OPTION] = MISSING
    threshold: Annotated[Any, Takes(Number | Literal["auto"], "give a number, or auto")] = MISSING
    iterations: Annotated[Any, Takes(Whole | Literal["auto"], "give a whole number, at least 1, or auto")] = MISSING
    stop: Annotated[dict[str, Any], OPTION] = field(default_factory=dict)
    seed: Annotated[int, Takes(StrictInt, "give a whole number")] = MISSING
    name: Annotated[str, Takes(Name, "use up to 64 letters, digits and . _ + -")] = MISSING
    store: Annotated[Any, Takes(StrictStr | Literal[False] | None, "give a folder, or off")] = "outputs/.store"
    store_limit_gb: Annotated[
        float | None, Takes(Annotated[Number, Field(ge=0)] | None, "give a number of gigabytes, or null")
    ] = None
    allow: Any = ()
    private_files: Annotated[bool, YES_OR_NO] = True
    drop: Annotated[Any, Takes(Sequence[FAULT], f"give a list of {', '.join(FAULTS)}, or []")] = ("not_finite",)
    max_hours: Annotated[float | None, Takes(Annotated[Number, Field(gt=0)] | None, "give more than 0, or null")] = None

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> "Schema":
        """Return the checked settings. Raises ``ConfigError`` with a line for each problem."""
        if problems := cls.problems(cfg):
            raise ConfigError(*(line for lines in problems.values() for line in lines))
        return TypeAdapter(cls).validate_python(cfg)

    @classmethod
    def problems(cls, cfg: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return what is wrong with ``cfg``, a line for each problem, by the name of the setting at the root."""
        found: dict[str, list[str]] = {}
        try:
            TypeAdapter(cls).validate_python(cfg)
        except Invalid as error:
            for each in error.errors():
                found.setdefault(str(each["loc"][0]), []).append(_line(each))
        teacher = cfg.get("teacher")
        if isinstance(teacher, Mapping) and not teacher.keys() & {"adapter", "checkpoint", "lora"}:
            found["teacher"] = ["`teacher.adapter` is missing; give one, or choose another `teacher`."]
        return found


def _line(error: Any) -> str:
    where, value = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "unexpected_keyword_argument":
        known = ", ".join(sorted(each.name for each in fields(Schema)))
        return f"`{where}` is unknown; there are {known}."
    if error["type"] == "missing":
        return f"`{where}` is missing."
    return f"`{where}` is {'missing' if value == MISSING else repr(value)}; {error['msg']}."


def make(kind: type[Made], node: Mapping[str, Any], where: str, **given: Any) -> Made:
    """Make a dataclass of the settings in ``node`` and the objects ``given``.

    Args:
        kind: The dataclass. Types count for fields that ``node`` sets; a type of another may be unknown at runtime.
        node: A value for each field that is not given and has no default; each is checked against the field's type.
        where: The place of ``node`` in the configuration, for messages.
        given: Fields that no setting can have.

    Raises:
        ConfigError: A line for each problem.
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
        except Invalid as error:
            problems.append(f"`{where}.{key}` is {value!r}: {error.errors()[0]['msg']}")
    for name, known in settable.items():
        if name not in node and known.default is REQUIRED and known.default_factory is REQUIRED:
            problems.append(f"`{where}.{name}` is missing")
    if problems:
        raise ConfigError(*(f"{problem}." for problem in problems))
    return kind(**values, **given)


def _type_of(kind: type, name: str) -> Any:
    """Return the type of one field. Those of the other fields are not resolved."""
    owner = next(each for each in kind.__mro__ if name in get_annotations(each))
    alone = type(kind.__name__, (), {"__annotations__": {name: get_annotations(owner)[name]}})
    known = getattr(sys.modules.get(owner.__module__), "__dict__", {})
    return get_type_hints(alone, known, dict(vars(owner)), include_extras=True)[name]
