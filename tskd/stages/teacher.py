"""A teacher made here: the base, fine-tuned with LoRA on the private split of a benchmark.

The adapter's folder is named by what goes into it, so that a teacher is made once and found again by every run that
asks for the same. The same recipe on the *target* gives the upper bound of any transfer: training on the data itself.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveInt

from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop
from tskd.errors import ConfigError, ModelError, RunFolderError
from tskd.metrics.accuracy import by_split
from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.lora import LoraSettings, StepLog
from tskd.modules.trainer import LightningTrainer
from tskd.records import PRIVATE, Graded, Question, Response
from tskd.stages.train import Replay, TrainLora
from tskd.storage import atomic_files
from tskd.storage.atomic_files import short_name
from tskd.tasks import Benchmark

CARD = "card.json"


@dataclass(frozen=True)
class TeacherLora(LoraSettings):
    """Set the LoRA training of a teacher, whose replay, if it has any, weighs less than a target's.

    The settings name the teacher's folder: another default would hide the teachers that were made before.
    """

    replay_weight: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class TeacherReplay(Replay):
    """Choose the texts that a teacher rehearses: by default none. They name its folder too."""

    source: Literal["none", "free", "dropped"] = "none"
    num_texts: PositiveInt = 512
    max_new_tokens: PositiveInt = 64


@dataclass(frozen=True)
class Finetuned:
    """How a teacher is made. Its ``seed`` is its own: the seeds of a sweep compare transfers from one teacher."""

    lora: TeacherLora
    replay: TeacherReplay = TeacherReplay()
    folder: str = "teachers"
    seed: int = 0

    def folder_for(self, base: Checkpoint, task: Benchmark) -> Path:
        """Where the teacher of ``base`` for ``task`` belongs: a digest of model, data and settings names it."""
        model = [base.path, base.revision, base.dtype, base.template, base.attention, base.quantization]
        content = json.dumps([*model, _digest(task.examples()), self._recipe])
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        return Path(self.folder) / short_name(f"{base.name}-{task.label}-{digest}")

    def is_made(self, folder: Path) -> bool:
        return (folder / CARD).is_file()

    def make(
        self,
        base: LanguageModel,
        task: Benchmark,
        evaluate: Callable[[LanguageModel], list[Graded]],
        trainer: LightningTrainer,
        folder: Path,
        log_step: StepLog | None = None,
        engine: Engine = OwnLoop(),
    ) -> dict[str, Any]:
        """Train the teacher, evaluate it beside its base, and put it all into ``folder``, whole or not at all.

        Returns the card; where another job has made the same teacher meanwhile, that one's. Raises ``ConfigError``
        where the private split is empty, and ``RunFolderError`` where ``folder`` cannot be had.
        """
        if self.is_made(folder):
            return atomic_files.read_json(dict, folder / CARD)
        examples = task.examples()
        if not examples:
            raise ConfigError(f"{task.label} has no private examples to fine-tune a teacher on.")
        with _room_beside(folder) as room:
            made = Path(room, folder.name)
            answers = {"base": evaluate(base)}  # first: what cannot be evaluated need not be trained
            told = (base, trainer, Path(room), self.seed, self.lora, self.replay, log_step)
            train = TrainLora(*told, engine=engine)
            responses = [Response(question.prompt, str(question.answer)) for question in examples]
            trained = train.learn(responses, Path(folder.name))
            answers["teacher"] = evaluate(LanguageModel(base.weights, str(made)))
            for voice, graded in answers.items():
                atomic_files.write_lines(made / f"{voice}.jsonl", graded)
            card = self._card(base, task, trained.loss, answers)
            atomic_files.write_text(made / "README.md", _model_card(card))
            atomic_files.write_json(made / CARD, card)
            with atomic_files.write_errors(f"the teacher {folder}"):
                atomic_files.put(made, folder, keep=True)
        return atomic_files.read_json(dict, folder / CARD)

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"lora": asdict(self.lora), "replay": asdict(self.replay), "seed": self.seed}

    def _card(
        self, base: LanguageModel, task: Benchmark, loss: float | None, answers: dict[str, list[Graded]]
    ) -> dict[str, Any]:
        accuracies = {voice: by_split(graded)[PRIVATE] for voice, graded in answers.items()}
        return {
            "base": asdict(base.weights.checkpoint)
            | {"revision": base.weights.resolved_revision, "weights": base.weights.content},
            "task": task.label,
            "note": task.note,
            "settings": self._recipe,
            "num_examples": len(task.examples()),
            "examples_sha256": _digest(task.examples()),
            "loss": loss,
            "num_held_out": len(accuracies["base"].correct),
            "base_accuracy": accuracies["base"].value,
            "base_standard_error": accuracies["base"].standard_error,
            "teacher_accuracy": accuracies["teacher"].value,
            "teacher_standard_error": accuracies["teacher"].standard_error,
        }


def check_base(adapter: str, base: Weights) -> None:
    """Raise ``ModelError`` where ``adapter`` is a teacher made here, of other weights than ``base`` has by now."""
    card = Path(adapter) / CARD
    said = atomic_files.read_json(dict, card).get("base") if card.is_file() else None
    made_of = said.get("weights") if isinstance(said, dict) else None  # cards of earlier versions do not say
    if made_of is not None and made_of != base.content:
        raise ModelError(
            f"The teacher {adapter} was made of other weights than {base.checkpoint.path} holds now; move it away, to "
            f"have it made again. If they are the same nevertheless (large files count by size and time), remove "
            f"`weights` from its {CARD}."
        )


def _room_beside(folder: Path) -> TemporaryDirectory[str]:
    """Make a hidden folder from which a whole teacher can be moved to ``folder``."""
    if folder.exists():
        raise RunFolderError(
            f"{folder} is no whole teacher, for it has no {CARD}; move it away, or choose another `teacher.folder`."
        )
    try:
        return atomic_files.room_beside(folder)
    except OSError as error:
        raise RunFolderError(
            f"Cannot write to {folder.parent}: {error.strerror}. Make room, or choose another `teacher.folder`."
        ) from error


def _digest(examples: Sequence[Question]) -> str:
    pairs = [[question.prompt.text, question.answer] for question in examples]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _model_card(card: dict[str, Any]) -> str:
    return f"""---
base_model: {card["base"]["path"]}
library_name: peft
---
# {card["base"]["name"]}, fine-tuned on {card["task"]}

A teacher for TuneShift-KD: a LoRA adapter trained on {card["num_examples"]} examples of the private split.
{card["note"]}

| held-out, n = {card["num_held_out"]} | accuracy | standard error |
|---|---|---|
| base | {card["base_accuracy"]:.3f} | {card["base_standard_error"]:.3f} |
| teacher | {card["teacher_accuracy"]:.3f} | {card["teacher_standard_error"]:.3f} |

```json
{json.dumps(card["settings"], indent=2)}
```
"""
