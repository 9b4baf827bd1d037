"""A teacher made here: the base, fine-tuned with LoRA on the private split of a benchmark.

The adapter's folder is named by what goes into it, so that a teacher is made once and found again by every run that
asks for the same. The same recipe on the *target* gives the upper bound of any transfer: training on the data itself.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tskd import artifacts
from tskd.errors import ConfigError
from tskd.evaluate import PRIVATE, Evaluator, by_split
from tskd.models import Checkpoint, LanguageModel
from tskd.modules.finetuner import LoraSettings, StepLog
from tskd.modules.trainer import LightningTrainer
from tskd.records import Graded, Question, Response
from tskd.stages.train import Replay, TrainLora
from tskd.tasks import Benchmark

CARD = "card.json"


@dataclass(frozen=True)
class Finetuned:
    """How a teacher is made. Its ``seed`` is its own: the seeds of a sweep compare transfers from one teacher."""

    lora: LoraSettings
    replay: Replay = field(default_factory=Replay)
    folder: str = "teachers"
    seed: int = 0
    same_base: bool = True

    def folder_for(self, base: Checkpoint, task: Benchmark) -> Path:
        """Where the teacher of ``base`` for ``task`` belongs: a digest of model, data and settings names it."""
        settings = {key: value for key, value in asdict(self).items() if key not in ("folder", "same_base")}
        content = [base.path, base.revision, base.dtype, base.template, _digest(task.examples()), settings]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]
        return Path(self.folder) / f"{base.name}-{task.label}-{digest}"

    def is_made(self, folder: Path) -> bool:
        return (folder / CARD).is_file()

    def make(
        self,
        base: LanguageModel,
        task: Benchmark,
        evaluator: Evaluator,
        trainer: LightningTrainer,
        folder: Path,
        log_step: StepLog | None = None,
    ) -> dict[str, Any]:
        """Train the teacher, evaluate it beside its base, and put all into ``folder``, whole or not at all.

        Returns the card: data, settings, accuracies. Raises ``ConfigError`` where the private split is empty.
        """
        examples = task.examples()
        if not examples:
            raise ConfigError(f"{task.label} has no private examples to fine-tune a teacher on.")
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        train = TrainLora(base, trainer, partial, self.seed, self.lora, self.replay, log_step)
        responses = [Response(q.prompt, q.answer) for q in examples if q.answer is not None]
        trained = train.learn(responses, Path("."))
        teacher = LanguageModel(base.weights, str(partial))
        answers = {"base": evaluator(base), "teacher": evaluator(teacher)}
        for voice, graded in answers.items():
            artifacts.write_lines(partial / f"{voice}.jsonl", graded)
        card = self._card(base, task, trained.num_examples, trained.loss, answers)
        artifacts.write_text(partial / "README.md", _model_card(card))
        artifacts.write_json(partial / CARD, card)
        base.weights.adopt(str(folder))
        if folder.exists():  # another job made the same one meanwhile
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
        return card

    def _card(
        self, base: LanguageModel, task: Benchmark, num_examples: int, loss: float, answers: dict[str, list[Graded]]
    ) -> dict[str, Any]:
        accuracies = {voice: by_split(graded)[PRIVATE] for voice, graded in answers.items()}
        return {
            "base": asdict(base.weights.checkpoint),
            "task": task.label,
            "note": task.note,
            "settings": asdict(self),
            "num_examples": num_examples,
            "examples_sha256": _digest(task.examples()),
            "loss": loss,
            "num_held_out": len(accuracies["base"].correct),
            "base_accuracy": accuracies["base"].value,
            "base_standard_error": accuracies["base"].standard_error,
            "teacher_accuracy": accuracies["teacher"].value,
            "teacher_standard_error": accuracies["teacher"].standard_error,
        }


def _digest(examples: Sequence[Question]) -> str:
    pairs = [[question.prompt.text, question.answer] for question in examples]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _model_card(card: dict[str, Any]) -> str:
    settings = json.dumps({"seed": card["settings"]["seed"], **card["settings"]["lora"]}, indent=2)
    return f"""---
base_model: {card["base"]["path"]}
library_name: peft
---
# {card["base"]["name"]}, fine-tuned on {card["task"]}

A teacher for TuneShift-KD, made by `python -m tskd.teach`: a LoRA adapter, trained on {card["num_examples"]} examples
of the private split. {card["note"]}

| held-out, n = {card["num_held_out"]} | accuracy | standard error |
|---|---|---|
| base | {card["base_accuracy"]:.3f} | {card["base_standard_error"]:.3f} |
| teacher | {card["teacher_accuracy"]:.3f} | {card["teacher_standard_error"]:.3f} |

```json
{settings}
```
"""
