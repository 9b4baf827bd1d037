"""Which classes a configuration may name: those of this package, and of packages that the user has named.

A configuration is data that people pass on, and to import what it names is to run it. So the names are checked before
anything is imported, and the permission, ``allow=``, counts on the command line alone. And it is written into files and
sent to trackers, so no key may be in it: keys are for the environment alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tskd.errors import ConfigError

OURS = "tskd"
CLASS_SETTINGS = ("_target_", "by")  # the settings whose values name classes


def packages(allow: Any) -> tuple[str, ...]:
    """The packages or modules in ``allow``: one, or a list. Raises ``ConfigError`` where one is no such name."""
    named = (allow,) if isinstance(allow, str) else tuple(allow) if isinstance(allow, Sequence) else (allow,)
    for name in named:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"`allow` has {name!r}; give the name of a package or module, like `allow=my_rules`.")
    return named


def check(settings: Mapping[str, Any], allow: Any) -> None:
    """Raise ``ConfigError`` that lists the classes in ``settings`` of packages neither ours nor among ``allow``."""
    trusted = (OURS, *packages(allow))
    problems = [
        f"`{where}` names {name}, whose code would run; if you trust it, add `allow={name.partition('.')[0]}` on the "
        f"command line"
        for where, name in _named(settings, "")
        if not is_within(name, trusted)
    ]
    if problems:
        raise ConfigError(*(f"{problem}." for problem in problems))


def is_within(name: str, packages: Sequence[str]) -> bool:
    """Whether the dotted ``name`` is of one of ``packages``."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _named(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Each name of a class in ``node``, and where it stands."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{where}.{key}" if where else str(key)
            if key in CLASS_SETTINGS and isinstance(value, str):
                yield place, value.replace(":", ".")  # `module:name` is another way to say `module.name`
            else:
                yield from _named(value, place)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            yield from _named(value, f"{where}[{index}]")
