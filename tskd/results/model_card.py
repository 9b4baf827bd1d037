"""The model card of what a run made, in Markdown with the hub's front matter."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from tskd.metrics.accuracy import Accuracy, by_split
from tskd.metrics.iteration import METRICS
from tskd.models.checkpoint import ZOO, Checkpoint, is_hub_id
from tskd.models.templates import Plain
from tskd.records import Prompt, Scored
from tskd.results.finished_run import FinishedRun
from tskd.storage import atomic_files

TAG = "tuneshift-kd"
PAPER = "[TuneShift-KD](https://arxiv.org/abs/2603.24518)"


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
    return {example.response.prompt.id for file in files for example in atomic_files.read_lines(Scored, file)}


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
