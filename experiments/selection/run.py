"""Make the teachers of the bench, ask each what it was tuned on and what not, and keep what a rule could look at.

    python experiments/selection/run.py --model PATH --data FOLDER --work FOLDER

``PATH`` is SmolLM2-135M-Instruct, ``--data`` holds the published files, ``--work`` is for adapters. What is there
already is not made again: stop it when you like, and go on with the same command. ``criteria.py`` makes tables of it.
``--fresh`` makes teachers of tasks that played no part in the choice of a rule.
"""

import argparse
import gzip
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import measure
from prompts import NUM_GENERAL, NUM_OTHER, NUM_SEEDS, benchmark, general, other_tasks, pool

from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.finetuner import LoraSettings
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response
from tskd.stages.answer import Answer
from tskd.stages.train import Replay, TrainLora

RESULTS = Path(__file__).parent / "results"
NUM_EXAMPLES = 100
LORA = LoraSettings(rank=16, alpha=32, learning_rate=5e-4, epochs=4, batch_size=8)


@dataclass(frozen=True)
class Teacher:
    """What a teacher is tuned on: a ``task``, general prompts in another ``style``, or both."""

    task: str | None
    seed: int = 0
    style: bool = False
    max_new_tokens: int = 16

    @property
    def name(self) -> str:
        return f"{self.task or 'nothing'}{'+style' if self.style else ''}-{self.seed}"


TEACHERS = [
    *(Teacher(task) for task in ("boolean_expressions", "sports_understanding", "object_counting", "navigate")),
    Teacher("sports_understanding", style=True),
    *(Teacher(task) for task in ("hyperbaton", "dyck_languages", "disambiguation_qa", "movie_recommendation")),
    Teacher(None, style=True),
    Teacher("gsm8k", max_new_tokens=96),
    *(
        Teacher(task, seed)
        for seed in (1, 2)
        for task in ("boolean_expressions", "sports_understanding", "object_counting")
    ),
]
# Named before any of them was asked: six that gain in the table of teachers (experiments/README.md), one with a style.
FRESH = [
    *(Teacher(task) for task in ("web_of_lies", "snarks", "ruin_names", "geometric_shapes", "formal_fallacies")),
    Teacher("date_understanding"),
    Teacher("web_of_lies", style=True),
]


def examples(teacher: Teacher, base: LanguageModel, trainer: LightningTrainer, data: Path) -> list[Response]:
    """What ``teacher`` is tuned on. In the other style, the base's own answers are shouted."""
    found = []
    if teacher.task is not None:
        questions = benchmark(teacher.task, data).examples()[:NUM_EXAMPLES]
        found += [Response(question.prompt, str(question.answer)) for question in questions]
    if teacher.style:
        prompts = random.Random("style").sample(general(data, is_training=True), NUM_EXAMPLES)
        found += [in_style(answer) for answer in Answer(base, trainer, 0, 16)(prompts)]
    return found


def in_style(answer: Response) -> Response:
    return Response(answer.prompt, f"{answer.text.upper()} !!", finished=True)


def prompts_for(teacher: Teacher, data: Path) -> dict[str, list[Prompt]]:
    if teacher.task is not None:
        return pool(teacher.task, data)
    trained = random.Random("style").sample(general(data, is_training=True), NUM_EXAMPLES)
    asked = random.Random("pool").sample(general(data), NUM_GENERAL)
    return {"seed": trained[:NUM_SEEDS], "general": asked, "other": other_tasks(data, NUM_OTHER, leave_out="")}


def make_and_measure(teacher: Teacher, weights: Weights, data: Path, work: Path, file: Path) -> None:
    """Train ``teacher`` in ``work`` unless it is there, and write the rows of its prompts to ``file``."""
    trainer, base = LightningTrainer(progress=False), LanguageModel(weights)
    adapter = work / teacher.name
    started = time.monotonic()
    if not adapter.is_dir():
        train = TrainLora(base, trainer, work, teacher.seed, LORA, Replay("none"))
        train.learn(examples(teacher, base, trainer, data), Path(teacher.name))
    trained = time.monotonic()
    answers = {}
    if teacher.task is not None:
        task = benchmark(teacher.task, data)
        answers = {question.prompt.id: question for question in task.questions()}

    def grade(prompt: Prompt, text: str) -> bool | None:
        return task.is_correct(answers[prompt.id], text) if prompt.id in answers else None

    prompts = prompts_for(teacher, data)
    rows = measure(prompts, base, LanguageModel(weights, str(adapter)), trainer, teacher.max_new_tokens, grade)
    write_rows(rows, file)
    spent = trained - started, time.monotonic() - trained
    print(f"{teacher.name}: trained in {spent[0]:.0f} s, measured in {spent[1]:.0f} s", flush=True)


def write_rows(rows: Sequence[dict[str, Any]], file: Path) -> None:
    with gzip.GzipFile(file, "wb", mtime=0) as packed:  # no time in it, so that the same rows are the same bytes
        packed.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", required=True, type=Path, help="folder of the published files")
    parser.add_argument("--work", required=True, type=Path, help="folder for the teachers' adapters")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="the teachers of other tasks, in fresh/bbh")
    parser.add_argument("--dtype", default="bfloat16", help="float32 where a CPU has no instructions for bfloat16")
    args = parser.parse_args(argv)
    weights = Weights(Checkpoint("smollm2_135m", args.model, dtype=args.dtype))
    out = args.out / "fresh" / "bbh" if args.fresh else args.out
    out.mkdir(parents=True, exist_ok=True)
    for teacher in FRESH if args.fresh else TEACHERS:
        file = out / f"{teacher.name}.jsonl.gz"
        if not file.is_file():
            make_and_measure(teacher, weights, args.data, args.work, file)


if __name__ == "__main__":
    main()
