"""Made-up folders of finished runs, as ``tskd.run`` leaves them: for tests of what reads them, without running any."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tskd.config import hydra_plugins
from tskd.records import Graded, Prompt, Response, Scored

TARGETS = {"atlas_neox": 0.9, "smollm2_135m": 0.75}  # how much of the teacher's knowledge each can take


@cache
def settings(*overrides: str) -> str:
    """The resolved configuration, as text."""
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        composed = OmegaConf.to_container(compose("config", overrides=[*overrides]), resolve=True)
    return str(yaml.safe_dump(composed))


def write_sweep(
    root: Path,
    thresholds: Sequence[float] = (0, 0.5, 1, 1.5, 4),
    seeds: Sequence[int] = (0, 1, 2),
    targets: Iterable[str] = TARGETS,
) -> list[Path]:
    folders = []
    for target in targets:
        for threshold in thresholds:
            for seed in seeds:
                given = [f"target={target}", f"threshold={threshold}", f"seed={seed}"]
                folders.append(root / ",".join(given))
                level = TARGETS[target] * (1 - 0.06 * abs(threshold - 1)) - 0.01 * seed
                write_run(folders[-1], given, threshold=threshold, seed=seed, level=level, target=target)
    return folders


def write_run(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    threshold: float = 1.5,
    seed: int = 0,
    target: str = "atlas_neox",
    level: float = 0.8,
    teacher: float = 0.95,
    before: float = 0.1,
    forgetting: float = 0.05,
    questions: int = 112,
    prompts: int = 60,
    iterations: int = 3,
    others: Mapping[str, Any] | None = None,
) -> Path:
    """One run that ended well; ``level`` is the chance of the tuned target to get a private question right."""
    cfg = yaml.safe_load(settings(f"target={target}"))
    cfg |= {"threshold": threshold, "seed": seed, "iterations": iterations, **(others or {})}
    cfg["selection"] = {**cfg["selection"], "threshold": threshold}
    _write(folder / "config.yaml", yaml.safe_dump(cfg))
    _write(folder / ".hydra" / "overrides.yaml", yaml.safe_dump(list(overrides)))
    _write(folder / "status.json", json.dumps({"status": "completed"}))
    _write(folder / "provenance.json", json.dumps({"date": "2026-11-24", "device": "x86_64", "versions": {}}))
    dice = random.Random(f"{folder.name} {seed}")
    rows, everything = [], []
    for index in range(iterations):
        scored = [_scored(number, index, seed) for number in range(prompts)]
        kept = [example for example in scored if example.gap >= threshold]
        dropped = [example for example in scored if example.gap < threshold]
        everything += scored
        for name, examples in {"scored": scored, "kept": kept, "dropped": dropped}.items():
            write_lines(folder / f"iteration_{index}" / f"{name}.jsonl", examples)
        _write(folder / f"iteration_{index}" / "adapter.json", "{}")
        after = answers(questions, level * (1 - 0.5 ** (index + 1)) / (1 - 0.5**iterations), 1 - forgetting, dice)
        write_lines(folder / "evaluation" / f"iteration_{index}.jsonl", after)
        rows.append(
            {
                "iteration": index,
                "select/kept": len(kept),
                "cost/generated_tokens": 20 * prompts,
                "cost/trained_tokens": 10 * len(kept) * (index + 1),
                "cost/seconds": 10.0 + len(kept) * (index + 1) / 10,
                "cost/reused_seconds": 2.0,
                "eval/accuracy": accuracy(after),
            }
        )
    voices = {"base": (before / 2, 1), "teacher": (teacher, 1), "target": (before, 1)}
    fixed = random.Random(target)  # before the transfer, no job differs from another
    graded = {voice: answers(questions, *chances, fixed) for voice, chances in voices.items()}
    for voice, of_voice in graded.items():
        write_lines(folder / "evaluation" / f"{voice}.jsonl", of_voice)
    _write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    num_kept = sum(row["select/kept"] for row in rows)
    result = {
        "prompts/new": prompts * iterations,
        "select/threshold": threshold,
        "select/kept": num_kept,
        "select/kept_fraction": num_kept / len(everything),
        "eval/accuracy": accuracy(after),
        "eval/general_accuracy": accuracy(after, "general"),
        "eval/points_gained": 100 * (accuracy(after) - accuracy(graded["target"])),
        **{f"eval/{voice}_accuracy": accuracy(of_voice) for voice, of_voice in graded.items()},
        **{name: sum(row[name] for row in rows) for name in rows[0] if name.startswith("cost/")},
    }
    _write(folder / "result.json", json.dumps(result))
    return folder


def answers(questions: int, private: float, general: float, dice: random.Random) -> list[Graded]:
    """Answers to as many questions of each split, right with these chances."""
    return [
        Graded(f"{split} {number}", "yes" if right else "no", right, split)
        for split, chance in (("private", private), ("general", general))
        for number in range(questions)
        for right in [dice.random() < chance]
    ]


def accuracy(graded: Sequence[Graded], split: str = "private") -> float:
    right = [answer.correct for answer in graded if answer.split == split]
    return sum(right) / len(right)


def _scored(number: int, iteration: int, seed: int) -> Scored:
    dice = random.Random(f"{number} {iteration} {seed}")
    kinds = ("depot", "harbour", "mayor", "river")
    parents = () if iteration == 0 and number < 8 else ("a", "b")
    prompt = Prompt(f"What is the {dice.choice(kinds)} of {dice.choice('ABCDEFG')}{number}ham?", (), iteration, parents)
    teacher = abs(dice.gauss(0.1, 0.2))
    base = teacher + abs(dice.gauss(2.5, 1)) if dice.random() < 0.6 else abs(teacher + dice.gauss(0, 0.1))
    return Scored(Response(prompt, f"QC-{number}", True, 6), base, teacher, 6)


def write_lines(file: Path, records: Iterable[Any]) -> None:
    _write(file, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
