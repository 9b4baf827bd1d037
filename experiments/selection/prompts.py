"""The prompts that a teacher is asked: seeds, its own kind, other tasks', and general ones, all of them published."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

from tskd.records import Prompt, Question
from tskd.tasks.bbh import TASKS, Bbh
from tskd.tasks.gsm8k import Gsm8k

NUM_SEEDS, NUM_OWN, NUM_OTHER, NUM_GENERAL = 16, 40, 40, 40
SOURCES = ("gsm8k", "mbpp", "mmlu")  # of general prompts


def pool(task: str, data: Path) -> dict[str, list[Prompt]]:
    """For the teacher of ``task``: seeds from what it was tuned on, and by kind what it has never seen."""
    own = benchmark(task, data)
    sources = [source for source in SOURCES if source != task]
    shuffled = random.Random(f"pool/{task}")
    return {
        "seed": _prompts(own.examples())[:NUM_SEEDS],
        "own": _prompts(own.questions())[:NUM_OWN],
        "other": other_tasks(data, NUM_OTHER, leave_out=task),
        "general": shuffled.sample(general(data, sources), NUM_GENERAL),
    }


def benchmark(task: str, data: Path) -> Bbh | Gsm8k:
    """The benchmark that a teacher's task belongs to; of GSM8K the whole solutions, which are open answers."""
    return Gsm8k(str(data), chain_of_thought=True) if task == "gsm8k" else Bbh(str(data), subset=task)


def other_tasks(data: Path, count: int, leave_out: str) -> list[Prompt]:
    """Held-out questions of the other BBH tasks, as many of each as of the next."""
    tasks = [task for task in TASKS if task != leave_out]
    each = [_prompts(Bbh(str(data), subset=task).questions()) for task in tasks]
    return [prompts[i] for i in range(-(-count // len(each))) for prompts in each][:count]


def general(data: Path, sources: Sequence[str] = SOURCES, *, is_training: bool = False) -> list[Prompt]:
    """Questions of arithmetic, programming and general knowledge; those for training are others than those to ask."""
    found: list[Prompt] = []
    if "gsm8k" in sources:
        file = data / "gsm8k" / ("train.jsonl" if is_training else "test.jsonl")
        found += [Prompt(json.loads(line)["question"]) for line in file.read_text().splitlines()[:200]]
    if "mbpp" in sources:
        rows = [json.loads(line)["text"] for line in (data / "mbpp" / "mbpp.jsonl").read_text().splitlines()]
        found += [Prompt(text) for text in (rows[600:800] if is_training else rows[:200])]
    if "mmlu" in sources:
        folder = data / "mmlu" / ("dev" if is_training else "test")
        for file in sorted(folder.glob("*.csv")):
            with file.open(newline="") as lines:
                found += [Prompt(row["question"]) for row in list(csv.DictReader(lines))[:4]]
    return found


def _prompts(questions: Sequence[Question]) -> list[Prompt]:
    return list(dict.fromkeys(question.prompt for question in questions))
