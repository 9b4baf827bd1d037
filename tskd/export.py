"""Ship what a finished run made: the adapter, or the target with it merged in, and a card that says what it is.

python -m tskd.export outputs/…            # the last iteration's adapter, in PEFT's format
python -m tskd.export outputs/… --merged   # a whole model

A card has settings, figures and names; prompts, responses and the paths of this machine stay here.
"""

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from omegaconf import OmegaConf
from safetensors import SafetensorError

from tskd import artifacts, config
from tskd.checkpoints import ZOO, Checkpoint, adapter_folder, is_hub_id
from tskd.console import console
from tskd.errors import ModelError, RunFolderError, TskdError
from tskd.evaluate import Accuracy, by_split
from tskd.metrics import METRICS
from tskd.models import Weights
from tskd.records import Graded, Prompt, Scored
from tskd.templates import Plain

TAG = "tuneshift-kd"
PAPER = "[TuneShift-KD](https://arxiv.org/abs/2603.24518)"


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
        rows = artifacts.RunFolder(folder).rows()
        if not (folder / "result.json").is_file():
            error = _read(folder / "status.json").get("error", "it was stopped").rstrip(".")
            progress = f"`iterations` is {settings['iterations']}, and {len(rows)} are done"
            raise RunFolderError(
                f"The run in {folder} has not finished ({progress}): {error}. "
                f"Go on with `python -m tskd.run resume={folder}`, then export it."
            )
        trained = artifacts.RunFolder(folder).last_adapter()
        if trained is None:
            raise RunFolderError(f"The run in {folder} has no adapter to export: no iteration has an adapter.json.")
        adapter = adapter_folder(str(folder.absolute() / trained.path))
        return cls(folder, settings, _read(folder / "result.json"), _read(folder / "provenance.json"), adapter)

    def checkpoint(self, role: str) -> Checkpoint:
        return config.make(Checkpoint, self.settings[role]["checkpoint"], f"{role}.checkpoint")

    @property
    def target(self) -> Checkpoint:
        return self.checkpoint("target")

    def revision(self, role: str) -> str | None:
        """The one asked for, or the one that was the newest when the run was made."""
        return self.checkpoint(role).revision or self.provenance.get("revisions", {}).get(role)

    def graded(self) -> dict[str, list[Graded]]:
        """The held-out answers of each voice, where the run has kept them."""
        names = artifacts.graded_as(self.adapter.parent.name)
        found = {voice: self.folder / "evaluation" / f"{name}.jsonl" for voice, name in names.items()}
        return {voice: artifacts.read_lines(Graded, file) for voice, file in found.items() if file.is_file()}


def export(folder: Path, out: Path | None = None, *, merged: bool = False, force: bool = False) -> Path:
    """Write the finished run in ``folder`` to ``out``, its own ``export`` by default, and return where that is.

    ``force`` replaces an earlier export, and nothing else. Raises ``RunFolderError`` or ``ModelError``.
    """
    run = FinishedRun.read(folder)
    out = folder / "export" if out is None else out
    _check_free(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            partial = Path(name)
            (_write_merged if merged else _write_adapter)(run, partial)
            (partial / "README.md").write_text(card(run, merged), encoding="utf-8")
            out.mkdir(exist_ok=True)
            for earlier in filter(Path.is_file, out.glob("[!.]*")):
                earlier.unlink()
            for file in partial.iterdir():
                file.replace(out / file.name)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"Cannot write to {out}: {error}. Make room, or choose another with --out.") from error
    return out


def card(run: FinishedRun, merged: bool) -> str:
    """The model card, in Markdown with the hub's front matter."""
    target, name = run.target, public_name(run.target.path)
    front = ModelCardData(
        base_model=name,
        base_model_relation="finetune" if merged else "adapter",
        library_name="transformers" if merged else "peft",
        tags=[TAG, "lora", "knowledge-distillation"],
        **_hub_licence(target.licence),
    )
    what = f"`{name}` with a LoRA adapter merged in" if merged else f"A LoRA adapter for `{name}`"
    shipped = "model" if merged else "adapter"
    figures = [(figure, value, METRICS.get(figure, "")) for figure, value in run.result.items()]
    return f"""---
{front.to_yaml()}
---

# {target.name} after TuneShift-KD

{what}, trained by {PAPER} on a teacher's answers to synthetic prompts.

**This {shipped} holds the teacher's private knowledge**: whoever has it can ask for what the teacher was fine-tuned on.
Give it only to those who may know that. This card has none of the prompts and responses.

## Load it

```python
{_code(run, merged)}
```

`FOLDER` is where this card lies. {_prompt_form(target.template)}{_merged_dtype(target) if merged else ""}

## Models

{_table(("", "model", "revision", "dtype", "licence"), _models(run))}

{_folders(run.settings)}

## Settings

{_table(("setting", "value"), _settings(run.settings))}

## Figures

{_how_measured(run)}

{_table(("figure", "value", "meaning"), figures)}

{_made_with(run.provenance)}
"""


def public_name(path: str) -> str:
    """A hub id as it is; of a folder, those of the zoo among them, the last name alone: it means nothing elsewhere."""
    return path if is_hub_id(path) else os.path.basename(os.path.abspath(Path(path.removeprefix(ZOO)).expanduser()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.export", description="Ship what a finished run made.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (RUN/export)")
    parser.add_argument("--merged", action="store_true", help="write a whole model, the adapter merged into the target")
    parser.add_argument("--force", action="store_true", help="replace the earlier export in DIR")
    arguments = parser.parse_args()
    try:
        out = export(arguments.run, arguments.out, merged=arguments.merged, force=arguments.force)
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    console.print(f"{'model' if arguments.merged else 'adapter (PEFT)'} with its card: {out} ({size / 1e6:.1f} MB)")


def _read(file: Path) -> dict[str, Any]:
    return artifacts.read_json(dict, file) if file.is_file() else {}


def _configuration(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file():
        jobs = sorted(config.parent.name for config in folder.glob("*/config.yaml"))
        hint = f"; it has those of a sweep's jobs: {', '.join(jobs)}" if jobs else ""
        raise RunFolderError(f"{folder} holds no run: there is no {file.name} in it{hint}.")
    return OmegaConf.to_container(
        config.of_run(folder, "base", "teacher", "target", "task", "iterations"), resolve=True
    )  # type: ignore[return-value]


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


def _code(run: FinishedRun, merged: bool) -> str:
    target, revision = run.target, run.revision("target")
    if merged:
        return f"""from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="{target.dtype}")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""
    at = f', revision="{revision}"' if revision else ""
    base = f'"{public_name(target.path)}"{at}, dtype="{target.dtype}"'
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), "FOLDER")"""


def _folders(settings: Mapping[str, Any]) -> str:
    """What the names in the table are that cannot be found on the hub."""
    nodes = [settings.get(role) or {} for role in ("base", "base_for_scoring", "teacher", "target")]
    paths = [path for node in nodes for path in (node.get("checkpoint", {}).get("path"), node.get("adapter"))]
    return "\n".join(
        f"- `{public_name(path)}` is `tskd/zoo/{path.removeprefix(ZOO)}` in the Python package `tskd`"
        if path.startswith(ZOO)
        else f"- `{public_name(path)}` is not on the hub: it was a folder where this was made"
        for path in dict.fromkeys(filter(None, paths))
        if not is_hub_id(path)
    )


def _prompt_form(template: str) -> str:
    plain = json.dumps(Plain(None).prefix(Prompt("…")), ensure_ascii=False)
    chat = "the tokenizer's chat template"
    form = {"chat": chat, "plain": f"`{plain}`"}.get(template, f"{chat} where it has one, else `{plain}`")
    return f"Prompts have the form that they had in training: {form}."


def _merged_dtype(target: Checkpoint) -> str:
    kept = "that of its files" if target.dtype == "auto" else target.dtype
    return (
        f"\nThe adapter was merged in the target's own dtype ({kept}), without quantization. The figures were measured "
        f"with the adapter beside the model; rounding can change an answer."
    )


def _models(run: FinishedRun) -> Iterator[tuple[str, ...]]:
    def row(label: str, role: str) -> tuple[str, ...]:
        checkpoint = run.checkpoint(role)
        quantized = "" if checkpoint.quantization == "none" else f", {checkpoint.quantization}"
        return (
            label,
            f"{checkpoint.name} (`{public_name(checkpoint.path)}`)",
            run.revision(role) or "–",
            checkpoint.dtype + quantized,
            checkpoint.licence or "not recorded",
        )

    yield row("base", "base")
    if run.settings.get("base_for_scoring") is not None:
        yield row("base in scoring, a stand-in", "base_for_scoring")
    teacher = run.settings["teacher"]
    if "checkpoint" in teacher:
        yield row("teacher", "teacher")
    else:
        made_here = "an adapter made on the task's private split"
        adapter = made_here if "lora" in teacher else f"the adapter `{public_name(teacher['adapter'])}`"
        yield "teacher", f"base with {adapter}", "", "", "not recorded"
    yield row("target", "target")


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((name, settings[name]) for name in ("threshold", "iterations", "seed"))
    # The rest of a task may be a user's own files, whose names are nobody's business.
    yield from _flat("task", {key: settings["task"][key] for key in ("_target_", "prompt_tokens", "response_tokens")})
    for group in ("expansion", "selection", "training"):
        yield from _flat(group, settings[group])


def _flat(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(name if key == "_target_" else f"{name}.{key}", value)
    else:
        yield name, public_name(node) if isinstance(node, str) and "/" in node else node


def _how_measured(run: FinishedRun) -> str:
    """How the accuracies came about, and the accuracies of all voices, with the number of questions."""
    if not any(name.startswith("eval/") for name in run.result):
        return "Nothing was evaluated: the run had no held-out questions."
    graded = run.graded()
    voices = {voice: by_split(answers) for voice, answers in graded.items()}
    said = [
        f"Measured once, by the run itself, with seed {run.settings['seed']}, on held-out questions.",
        _grading(run),
    ]
    if not voices:
        return " ".join([*said, "How many questions there were was not recorded."])
    asked = {answer.question for answers in graded.values() for answer in answers}
    if repeated := len(asked & _trained_on(run.folder)):
        said.append(f"{repeated} of the {len(asked)} questions are among the prompts that the target was trained on.")
    said.append(
        "Standard errors are over questions: they tell nothing of other seeds, and are 0 where all is right or wrong."
    )
    splits = {split: len(accuracy.correct) for of_voice in voices.values() for split, accuracy in of_voice.items()}
    header = ["accuracy", *(f"{split} (n = {count})" for split, count in splits.items())]
    rows = [(voice, *(_accuracy(of_voice[split]) for split in splits)) for voice, of_voice in voices.items()]
    return f"{' '.join(said)}\n\n{_table(header, rows)}"


def _grading(run: FinishedRun) -> str:
    if note := run.provenance.get("task_note"):  # only benchmarks have one
        return f"Asked and graded by lm-evaluation-harness. {note}"
    task = run.settings["task"]
    ours = task["_target_"].startswith("tskd.")
    rule = "exact match but for case, white space and a final full stop" if ours else f"`{task['_target_']}`"
    return (
        f"Answered greedily, with at most {task['response_tokens']} tokens, and graded by {rule}; a question that came "
        f"without an answer is compared with the teacher's."
    )


def _accuracy(accuracy: Accuracy) -> str:
    error = accuracy.standard_error
    return f"{accuracy.value:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def _trained_on(folder: Path) -> set[str]:
    """The ids of the prompts in the corpus, where the run's records are still there."""
    files = folder.glob("iteration_*/kept.jsonl")
    return {example.response.prompt.id for file in files for example in artifacts.read_lines(Scored, file)}


def _made_with(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items() if version)
    return f"Made on {provenance['date']} with {versions} on {provenance['device']}."


def _table(header: Sequence[str], rows: Iterator[tuple[Any, ...]] | Sequence[tuple[Any, ...]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _hub_licence(licence: str) -> dict[str, Any]:
    """The hub's fields for a licence: its identifier there, or "other" and a name."""
    if " " in licence:
        return {"license": "other", "license_name": licence}
    return {"license": licence.lower() or None}


if __name__ == "__main__":
    main()
