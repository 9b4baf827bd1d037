"""How far a pass or a training has come, on disk: a run that is killed loses the batch in flight, or the epoch.

A pass has a file of lines, one for each finished batch, and each line its checksum: one that was broken off halfway, or
damaged, is not taken. A training has a checkpoint, whose checksum is in its name. Both are named by the key of what
decides their results, code included (``fingerprint``), so nothing is ever taken for something else. They stay until the
run has its result: texts that the target rehearses, for example, serve all its iterations.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tskd.runtime import processes
from tskd.storage.atomic_files import put, room_beside, write_errors
from tskd.storage.fingerprint import hash_file


@dataclass(frozen=True)
class Journal:
    """The journal of one run, in ``folder``. Several processes write files of their own, and read those of all."""

    folder: Path

    def read(self, key: str) -> dict[int, Any]:
        """What has been noted under ``key``, by index."""
        found: dict[int, Any] = {}
        for file in sorted(self.folder.glob(f"{key}.*.jsonl")):
            with suppress(OSError):  # what cannot be read is computed again
                for line in file.read_bytes().splitlines():
                    checksum, _, text = line.partition(b" ")
                    if hashlib.sha256(text).hexdigest().encode() == checksum:
                        found.update(json.loads(text))
        return found

    def add(self, key: str, results: Mapping[int, Any]) -> None:
        """Note ``results`` by index, plain values or dataclasses of them, on disk before this returns."""
        text = json.dumps(list(results.items()), default=astuple)
        file = self.folder / f"{key}.{processes.rank()}.jsonl"
        with write_errors(file):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with file.open("a", encoding="ascii") as out:
                out.write(f"\n{hashlib.sha256(text.encode()).hexdigest()} {text}")  # what was broken off ends here
                out.flush()
                os.fsync(out.fileno())

    def checkpoint(self, key: str) -> Path | None:
        """The newest whole checkpoint under ``key``, where there is one."""
        files = self.folder.glob(f"{key}.*.ckpt")
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
            with suppress(OSError):
                if hash_file(file) == file.suffixes[0][1:]:
                    return file
        return None

    def replace_checkpoint(self, key: str, save: Callable[[Path], None]) -> None:
        """Keep what ``save`` writes under ``key``, and no checkpoint from before: those trainings are over."""
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with room_beside(self.folder / key) as room:
                save(partial := Path(room, "partial"))
                new = self.folder / f"{key}.{hash_file(partial)}.ckpt"
                put(partial, new)
            for file in set(self.folder.glob("*.ckpt")) - {new}:
                file.unlink(missing_ok=True)
