"""A finished run, as its folder tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tskd.config import saved, schema
from tskd.errors import RunFolderError
from tskd.models.checkpoint import Checkpoint, adapter_folder
from tskd.records import Graded
from tskd.storage import atomic_files, run_folder


@dataclass(frozen=True)
class FinishedRun:
    """What the folder of a finished run says: configuration, final numbers, what they were made with, last adapter."""

    folder: Path
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    provenance: Mapping[str, Any]
    adapter: Path

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """Raises ``RunFolderError`` where there is no run, where it has not finished, or where it has no adapter."""
        settings = _configuration(folder)
        rows = run_folder.RunFolder(folder).rows()
        if not (folder / "result.json").is_file():
            error = _read(folder / "status.json").get("error", "it was stopped").rstrip(".")
            progress = f"`iterations` is {settings['iterations']}, and {len(rows)} are done"
            raise RunFolderError(
                f"The run in {folder} has not finished ({progress}): {error}. "
                f"Go on with `python -m tskd.run resume={folder}`, then export it."
            )
        trained = run_folder.RunFolder(folder).last_adapter()
        if trained is None:
            raise RunFolderError(f"The run in {folder} has no adapter to export: no iteration has an adapter.json.")
        adapter = adapter_folder(str(folder.absolute() / trained.path))
        return cls(folder, settings, _read(folder / "result.json"), _read(folder / "provenance.json"), adapter)

    def checkpoint(self, role: str) -> Checkpoint:
        return schema.make(Checkpoint, self.settings[role]["checkpoint"], f"{role}.checkpoint")

    @property
    def target(self) -> Checkpoint:
        return self.checkpoint("target")

    def revision(self, role: str) -> str | None:
        """The one asked for, or the one that was the newest when the run was made."""
        return self.checkpoint(role).revision or self.provenance.get("revisions", {}).get(role)

    def graded(self) -> dict[str, list[Graded]]:
        """The held-out answers of each voice, where the run has kept them."""
        names = run_folder.graded_as(self.adapter.parent.name)
        found = {voice: self.folder / "evaluation" / f"{name}.jsonl" for voice, name in names.items()}
        return {voice: atomic_files.read_lines(Graded, file) for voice, file in found.items() if file.is_file()}


def _read(file: Path) -> dict[str, Any]:
    return atomic_files.read_json(dict, file) if file.is_file() else {}


def _configuration(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file():
        jobs = sorted(config.parent.name for config in folder.glob("*/config.yaml"))
        hint = f"; it has those of a sweep's jobs: {', '.join(jobs)}" if jobs else ""
        raise RunFolderError(f"{folder} holds no run: there is no {file.name} in it{hint}.")
    return OmegaConf.to_container(saved.of_run(folder, "base", "teacher", "target", "task", "iterations"), resolve=True)  # type: ignore[return-value]
