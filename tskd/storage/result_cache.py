"""Cache results by content: what one job has computed, another takes.

An entry is named by a digest of all that decides it: the stage's settings and code, the models' weights, the input
records, and the versions of libraries (``tskd.storage.fingerprint``). Jobs of a sweep that differ in the threshold
share expansion, answers and scores; if two of them keep the same examples, they share the training too. Entries are
written whole and checked when they are read: a damaged entry is computed again.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from tskd.errors import RunFolderError
from tskd.records import Adapter, Expansion, Graded, Prompt, Response, Scored, Screening
from tskd.runtime import interrupts
from tskd.storage import atomic_files
from tskd.storage.fingerprint import cache_key, hash_adapter
from tskd.tuneshift import Stages, ask_all

log = logging.getLogger(__name__)
RESULTS: dict[str, Any] = {
    "expand": Expansion,
    "screen": Screening,
    "answer": list[Response],
    "score": list[Scored],
    "train": Adapter,
    "evaluate": list[Graded],
}
Result = TypeVar("Result")


class Store:
    """Entries in ``folder``, readable by their owner only; with no folder, everything is computed.

    ``reused_seconds`` counts what the entries that were taken have cost when they were made. With ``limit_gb``, those
    longest not used make way for new ones.
    """

    def __init__(self, folder: Path | None, limit_gb: float | None = None) -> None:
        self.folder = folder
        self.limit_gb = limit_gb
        self.reused_seconds = 0.0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                log.warning("There is no store: %s cannot be made (%s).", folder, error.strerror)
                self.folder = None

    def sharing(self, stages: Stages, run_folder: Path) -> Stages:
        """The same stages, each of which takes its result from the store where it is there, or puts it there."""

        def expand(pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
            key = self._key("expand", stages.expand, pool, seen, index)
            return self._records(Expansion, key, lambda: stages.expand(pool, seen, index))

        def screen(prompts: Sequence[Prompt], seeds: Sequence[Prompt]) -> Screening:
            if stages.screen is ask_all:
                return ask_all(prompts, seeds)
            key = self._key("screen", stages.screen, prompts, seeds)
            return self._records(Screening, key, lambda: stages.screen(prompts, seeds))

        def answer(prompts: Sequence[Prompt]) -> Sequence[Response]:
            key = self._key("answer", stages.answer, prompts)
            return self._records(list[Response], key, lambda: stages.answer(prompts))

        def score(responses: Sequence[Response]) -> Sequence[Scored]:
            key = self._key("score", stages.score, responses)
            return self._records(list[Scored], key, lambda: stages.score(responses))

        def train(corpus: Sequence[Scored], dropped: Sequence[Scored], index: int) -> Adapter:
            key = self._key("train", stages.train, *learnt(stages.train, corpus, dropped, index))
            return self._adapter(key, run_folder, lambda: stages.train(corpus, dropped, index))

        return Stages(expand, answer, score, stages.select, train, screen)

    def graded(self, evaluator: Callable[[Any], list[Graded]], model: Any) -> list[Graded]:
        """What ``evaluator`` says of ``model``."""
        key = self._key("evaluate", evaluator, model)
        return self._records(list[Graded], key, lambda: evaluator(model))

    def held(self, stage: str, *content: Any) -> tuple[Any, float] | None:
        """What is here of ``stage`` on ``content``, and the seconds that it took; ``None`` where it has to be computed.

        Only looks: nothing is copied or marked as used. An adapter's path is that of the copy in the store.
        """
        if self.folder is None:
            return None
        key = self._key(stage, *content)
        entry, weights = _read(self.folder / f"{key}.json"), self.folder / key
        if entry is None or (stage == "train" and hash_adapter(weights) != entry["files"]):
            return None
        try:
            found = _type_adapter(RESULTS[stage]).validate_python(entry["result"])
        except ValidationError:
            return None
        return replace(found, path=str(weights)) if stage == "train" else found, entry["seconds"]

    def _key(self, stage: str, *content: Any) -> str:
        return "" if self.folder is None else f"{stage}-{cache_key([stage, content])}"

    def _records(self, kind: Any, key: str, compute: Callable[[], Result]) -> Result:
        if self.folder is None:
            return compute()
        with self._alone(key):
            return self._records_alone(kind, key, compute)

    def _records_alone(self, kind: Any, key: str, compute: Callable[[], Result]) -> Result:
        assert self.folder is not None
        file = self.folder / f"{key}.json"
        if (entry := _read(file)) is not None:
            _touch(file)
            try:
                found = _type_adapter(kind).validate_python(entry["result"])
            except ValidationError:
                log.warning("The store's %s is of another form; it is computed again.", file.name)
            else:
                self.reused_seconds += entry["seconds"]
                return found  # type: ignore[no-any-return]
        started = time.monotonic()
        result = compute()
        plain = [asdict(record) for record in result] if isinstance(result, list) else asdict(result)  # type: ignore[call-overload]
        _write(file, {"seconds": time.monotonic() - started, "result": plain})
        self._keep_to_limit()
        return result

    def _adapter(self, key: str, run_folder: Path, compute: Callable[[], Adapter]) -> Adapter:
        if self.folder is None:
            return compute()
        with self._alone(key):
            return self._adapter_alone(key, run_folder, compute)

    def _adapter_alone(self, key: str, run_folder: Path, compute: Callable[[], Adapter]) -> Adapter:
        assert self.folder is not None
        file, weights = self.folder / f"{key}.json", self.folder / key
        entry = _read(file)
        if entry is not None and hash_adapter(weights) == entry["files"]:
            adapter: Adapter = _type_adapter(Adapter).validate_python(entry["result"])
            if not (run_folder / adapter.path).resolve().is_relative_to(run_folder.resolve()):
                raise RunFolderError(f"The store's {file} would write to {adapter.path!r}; remove that file.")
            with atomic_files.write_errors(run_folder / adapter.path):
                atomic_files.copy_folder(weights, run_folder / adapter.path)
            _touch(file)
            self.reused_seconds += entry["seconds"]
            return adapter
        started = time.monotonic()
        adapter = compute()
        seconds = time.monotonic() - started
        try:
            atomic_files.copy_folder(run_folder / adapter.path, weights)
        except OSError as error:
            log.warning("The store cannot keep %s: %s.", key, error)
        else:
            _write(file, {"seconds": seconds, "result": asdict(adapter), "files": hash_adapter(weights)})
            self._keep_to_limit()
        return adapter

    def _keep_to_limit(self) -> None:
        if self.folder is not None and self.limit_gb is not None:
            prune(self.folder, self.limit_gb * 10**9)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Let one process at a time compute ``key``; the others then find it here. A killed one's claim is void."""
        assert self.folder is not None
        claim = FileLock(self.folder / ".claims" / key)
        try:
            (self.folder / ".claims").mkdir(exist_ok=True, mode=0o700)
            try:
                claim.acquire(timeout=0)
            except Timeout:
                log.info("Another job computes the same %s; this one waits for it.", key.partition("-")[0])
                while not claim.is_locked:
                    interrupts.check()
                    with suppress(Timeout):
                        claim.acquire(timeout=1)
        except (OSError, NotImplementedError):  # read-only, or a file system without locks
            yield
            return
        try:
            yield
        finally:
            claim.release()


def learnt(train: Any, corpus: Sequence[Scored], dropped: Sequence[Scored], index: int) -> tuple[Any, ...]:
    """What of the inputs of ``train`` decides the adapter: an objective may look at scores, the nll is of the texts."""
    has_objective = getattr(train, "objective", None) is not None
    return corpus if has_objective else [e.response for e in corpus], [e.response for e in dropped], index


@cache
def _type_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        checksum, _, text = file.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        log.warning("The store's %s is damaged; it is computed again.", file.name)
        return None
    return json.loads(text)  # type: ignore[no-any-return]


def _write(file: Path, entry: dict[str, Any]) -> None:
    """Write an entry. If it cannot be written, log a warning: that costs time, not the run."""
    text = json.dumps(entry)
    try:
        with atomic_files.replacing(file) as partial:
            partial.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf-8")
    except OSError as error:
        log.warning("The store cannot keep %s: %s.", file.name, error.strerror)


def _touch(file: Path) -> None:
    """Its time tells when it was last used; the kernel's own would be the same for what is used within milliseconds."""
    now = time.time_ns()
    with suppress(OSError):
        os.utime(file, ns=(now, now))


@dataclass(frozen=True)
class Entry:
    """One result in the store: its stage, its files, what they take and when they were last used."""

    stage: str
    paths: tuple[Path, ...]
    size: int
    used: float

    def remove(self) -> None:
        for path in self.paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def entries(folder: Path) -> list[Entry]:
    """All entries, the longest not used first."""
    found = []
    for file in folder.glob("*-*.json"):
        paths = tuple(path for path in (file, file.with_suffix("")) if path.exists())
        files = [each for path in paths for each in ([path] if path.is_file() else path.iterdir())]
        size = sum(each.stat().st_size for each in files)
        found.append(Entry(file.name.partition("-")[0], paths, size, file.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def prune(folder: Path, limit: float) -> list[Entry]:
    """Remove the entries that were longest not used until the others take at most ``limit`` bytes; say which."""
    removed = []
    rest = entries(folder)
    while rest and sum(entry.size for entry in rest) > limit:
        removed.append(rest.pop(0))
        removed[-1].remove()
    return removed
