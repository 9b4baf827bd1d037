"""Write what a finished run made into a folder of its own: the adapter, or the target with it merged in, and a card."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from tskd.errors import ModelError, RunFolderError
from tskd.models.weights import Weights
from tskd.results.finished_run import FinishedRun
from tskd.results.model_card import TAG, card, public_name
from tskd.storage.atomic_files import put, room_beside


def export(folder: Path, out: Path | None = None, *, merged: bool = False, force: bool = False) -> Path:
    """Write the finished run in ``folder`` to ``out``, its own ``export`` by default, and return where that is.

    ``force`` replaces an earlier export, and nothing else. Raises ``RunFolderError`` or ``ModelError``.
    """
    run = FinishedRun.read(folder)
    out = folder / "export" if out is None else out
    _check_free(out, force)
    try:
        with room_beside(out) as room:
            partial = Path(room)
            (_write_merged if merged else _write_adapter)(run, partial)
            (partial / "README.md").write_text(card(run, merged), encoding="utf-8")
            out.mkdir(exist_ok=True)
            for earlier in filter(Path.is_file, out.glob("[!.]*")):
                earlier.unlink()
            for file in partial.iterdir():
                put(file, out / file.name)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"Cannot write to {out}: {error}. Make room, or choose another with --out.") from error
    return out


def _check_free(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; choose a folder with --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise RunFolderError(f"{out} is not empty; choose another with --out, or replace an export with --force.")
    readme = out / "README.md"
    if not readme.is_file() or not re.match(rf"---\n(?:.*\n)*?- {TAG}\n", readme.read_text(errors="replace")):
        raise RunFolderError(f"{out} holds something else than an export, which is not replaced; choose another --out.")


def _write_adapter(run: FinishedRun, folder: Path) -> None:
    shutil.copyfile(run.adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    settings = json.loads((run.adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = public_name(run.target.path)
    settings["revision"] = run.revision("target")
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _write_merged(run: FinishedRun, folder: Path) -> None:
    # A quantised model cannot take the adapter in without loss; its own weights can.
    weights = Weights(replace(run.target, quantization="none", device_map=None))
    weights.check_adapter(str(run.adapter))
    with weights.speaking(str(run.adapter)) as model:
        try:
            merged = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"The adapter {run.adapter} cannot be merged: {error}") from error
    merged.save_pretrained(folder)
    weights.tokenizer.save_pretrained(folder)
