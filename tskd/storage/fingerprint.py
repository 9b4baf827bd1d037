"""The key of a result: a digest of all that decides it, by which the store and the journal find it again.

It holds settings and inputs, the content of models and paths, the code, and the versions of ``PACKAGES``. Code is the
source of each class and function among the settings, and of what it imports, closed: inside tskd, and in a user's own
files outside site-packages and the standard library. Imports in functions count; docstrings, comments and layout do
not. A loaded module counts as it was when its first key was made, however its file changes, until it is reloaded.

A setting that is a ``Path`` counts by its content. A dataclass leaves out what decides nothing, such as a folder that
it writes to, by ``field(compare=False)``; any class can define ``key_content()``, which returns what counts.
A file whose name is a string, and a module whose name is computed, count by that name alone.

The first keys of a process parse the modules, 0.1 s for all stages on one core; each later key takes 0.3 ms, and 6 ms
for each 1000 prompts among its inputs.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any
from uuid import uuid4

PACKAGES = ("torch", "transformers", "tokenizers", "peft")


class OutputFolder(type(Path())):  # type: ignore[misc]
    """A folder that a stage writes to, which decides no result."""

    def key_content(self) -> None:
        return None


def cache_key(value: Any) -> str:
    """Return 32 hex digits that name the result that ``value`` decides.

    An object of which only its address in memory is known has another key in each process.
    """
    modules: set[str] = set()
    whole = [key_content(value, modules), _code(modules), _versions()]
    return _sha256(json.dumps(whole, sort_keys=True, default=repr).encode())[:32]


def key_content(value: Any, modules: set[str] | None = None) -> Any:
    """Return what of ``value`` decides a result, without its code, as plain JSON.

    Args:
        value: If it has a method ``key_content``, what that returns counts in its place.
        modules: Gains the names of the modules of all classes and functions in ``value``.
    """
    modules = set() if modules is None else modules

    def plain(inner: Any) -> Any:
        return key_content(inner, modules)

    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        modules.add(value.__module__)
        return _name(value)
    modules.add(type(value).__module__)
    if hasattr(value, "key_content"):
        return plain(value.key_content())
    if isinstance(value, Path):
        return _path_content(value)
    if isinstance(value, MethodType):
        return plain([value.__func__, value.__self__])
    if isinstance(value, partial):
        return {"class": "functools.partial", "of": plain([value.func, value.args, value.keywords])}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Sequence):
        return [plain(each) for each in value]
    if is_dataclass(value):
        settings = {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.compare}
        return {"class": _name(type(value)), **settings}
    if callable(value):
        return {"class": _name(type(value)), **plain(getattr(value, "__dict__", {}))}
    return value


def _name(named: type | FunctionType | BuiltinFunctionType) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def _versions() -> list[str | None]:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return [installed(package) for package in PACKAGES]


@dataclass(frozen=True)
class _Source:
    digest: str
    imports: frozenset[str] = frozenset()


_sources: dict[str, tuple[Any, Any, _Source]] = {}  # by module: its state, what has that state, and its source


def _code(roots: Iterable[str]) -> dict[str, str]:
    """Return the digest of the source of each module in ``roots``, and of each own module that they import."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in sys.builtin_module_names:
            source = _source(name)
            found[name] = source.digest
            waiting += source.imports
    return found


def _source(name: str) -> _Source:
    """Return the source of a module, parsed once. If it cannot be read (a notebook's), it is new each time."""
    file, module = _file(name), sys.modules.get(name)
    loaded = getattr(module, "__spec__", None) or module
    try:
        if file is None:
            raise FileNotFoundError(name)
        status = file.stat()
        state = (file, status.st_mtime_ns, status.st_size) if loaded is None else id(loaded)
        if name not in _sources or _sources[name][0] != state:
            _sources[name] = state, loaded, _parsed(name, _read(file), file.stem == "__init__")
    except OSError:
        return _Source(uuid4().hex)
    return _sources[name][2]


def _read(file: Path) -> bytes:
    return file.read_bytes()


def _parsed(name: str, text: bytes, is_package: bool) -> _Source:
    try:
        tree = ast.parse(text) if _is_own(name) else None
    except (SyntaxError, ValueError):  # it is compiled
        tree = None
    if tree is None:
        return _Source(_sha256(text))
    package = getattr(sys.modules.get(name), "__package__", None) or (name if is_package else name.rpartition(".")[0])
    parts = [each.split(".") for each in _imported(tree, package)]
    own = {top for top in {each[0] for each in parts} if _is_own(top)}
    names = {".".join(each[:count]) for each in parts if each[0] in own for count in range(1, len(each) + 1)}
    imports = frozenset(each for each in names if _file(each) is not None)
    return _Source(_sha256(ast.dump(_WithoutText().visit(tree)).encode()), imports)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield what is imported, by its full name; it may be a module, or a name in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # more dots than packages
                base = resolve_name("." * node.level + (node.module or ""), package)
                yield from (f"{base}.{alias.name}" for alias in node.names)


class _WithoutText(ast.NodeTransformer):
    """Remove docstrings, and other constants that stand alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def _file(name: str) -> Path | None:
    """Return the file of a module. Imports nothing."""
    if (loaded := getattr(sys.modules.get(name), "__file__", None)) is not None:
        return Path(loaded)
    top, *rest = name.split(".")
    spec = _spec(top)
    if not rest:
        return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None
    places = [Path(folder, *rest) for folder in _folders(spec)]
    files = (file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py")))
    return next((file for file in files if file.is_file()), None)


def _is_own(name: str) -> bool:
    """Whether a module is tskd's, or neither of the standard library nor installed."""
    top = name.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return True
    if top in (*PACKAGES, *sys.stdlib_module_names):
        return False
    file = _file(top)
    places = _folders(_spec(top)) if file is None else [str(file)]
    return not any(f"{kind}-packages" in Path(place).parts for place in places for kind in ("site", "dist"))


def _spec(top: str) -> ModuleSpec | None:
    with suppress(ValueError):  # `__main__` has none
        return find_spec(top)
    return None


def _folders(spec: ModuleSpec | None) -> list[str]:
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _path_content(path: Path) -> Any:
    """Return the digest of a file, or of each file in a folder by its name there. ``None`` if there is neither."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): _path_content(file) for file in path.rglob("*") if file.is_file()}
    if not path.is_file():
        return None
    status = path.stat()
    return _hash_unchanged(path.resolve(), status.st_mtime_ns, status.st_size)


@cache
def _hash_unchanged(file: Path, mtime_ns: int, size: int) -> str:
    return hash_file(file)


def hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_adapter(folder: Path) -> dict[str, str]:
    # PEFT writes the base's name and library versions into the other files; the weights and these settings decide.
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: hash_file(folder / name) for name in names if (folder / name).is_file()}


@cache
def hash_weights(folder: Path) -> str:
    """Return a digest of a model's files in a folder: of small ones' content, of large shards' size and time."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.jinja")]):
        status = file.stat()
        is_small = status.st_size < 2**30
        digest.update(f"{file.name} {status.st_size} {'' if is_small else status.st_mtime_ns}".encode())
        if is_small:
            digest.update(hash_file(file).encode())
    return digest.hexdigest()
