"""5. Train: a fresh LoRA adapter of the target, on all that was kept so far."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop, generate
from tskd.errors import ConfigError, EmptySelection
from tskd.models.checkpoint import adapter_folder
from tskd.models.encoding import TokenSequence, encode_prefix, encode_response, encode_text
from tskd.models.generation import Request, Sampling
from tskd.models.probes import different_shapes
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings, StepLog
from tskd.modules.trainer import LightningTrainer
from tskd.records import Adapter, Prompt, Response, Scored
from tskd.storage import atomic_files

if TYPE_CHECKING:
    from tskd.modules.objectives import Loss, Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replay:
    """Choose the texts that the target rehearses while it learns.

    Args:
        source: free: texts that the target writes from its start token (no data; Bansal & Sanghavi 2025). dropped: the
            prompts that selection dropped, with the target's own answers. none: no replay, as in the paper.
        num_texts: How many free texts the target writes, once for all iterations.
        max_new_tokens: The most tokens of a free text, or of an answer to a dropped prompt.
    """

    source: Literal["none", "free", "dropped"] = "free"
    num_texts: PositiveInt = 4096
    max_new_tokens: PositiveInt = 24


@dataclass(frozen=True)
class TrainLora:
    """Targets learn from the teacher's texts, re-tokenised, so any architecture and tokenizer will do.

    Without an ``objective``, the loss is their nll. One may look at the scores, and ask the ``teacher``.
    An example whose loss is no number ends the run, or with ``not_finite`` drop, it is left out and counted. An epoch
    is filled up to ``fill_epoch_to``: a smaller corpus is gone through again and again in it, so that few take as many
    steps.
    """

    target: LanguageModel
    trainer: LightningTrainer
    folder: Path = field(compare=False)
    seed: int
    lora: LoraSettings
    replay: Replay = Replay()
    log_step: StepLog | None = field(default=None, compare=False)  # it decides nothing
    objective: "Objective | None" = None
    teacher: LanguageModel | None = None
    not_finite: Literal["stop", "drop"] = "stop"
    min_examples: PositiveInt = 1
    fill_epoch_to: PositiveInt | None = None
    engine: Engine = OwnLoop()

    def __post_init__(self) -> None:
        if self.target.adapter is not None:
            raise ConfigError("The target is trained from its pre-trained weights; it must come without an adapter.")
        if self.objective is not None and self.teacher is None:
            raise ValueError("An objective is given the teacher, and there is none.")

    def check_models(self) -> None:
        """Raise ``TskdError`` where what is set cannot be had of device and models. Loads no weights."""
        self.lora.check_device(self.trainer.device)
        if (check := getattr(self.objective, "check_models", None)) is not None:
            check(self.target, self.teacher)

    def __call__(self, corpus: Sequence[Scored], dropped: Sequence[Scored], index: int) -> Adapter:
        """The adapter, saved under ``iteration_<index>/adapter`` of the run's folder.

        Raises ``EmptySelection`` where the corpus has less than ``min_examples``.
        """
        if len(corpus) < self.min_examples:
            raise EmptySelection(
                f"Iteration {index} leaves {len(corpus)} examples to train on, and `training.min_examples` is "
                f"{self.min_examples}; lower it or `threshold`, or raise `expansion.num_drafts`."
            )
        if len(corpus) < self.lora.batch_size:
            log.warning(
                "Only %d examples were kept, less than one batch (%d); the adapter will know little else.",
                *(len(corpus), self.lora.batch_size),
            )
        path = Path(f"iteration_{index}") / "adapter"
        epoch = self.epoch(corpus)
        loss = None
        if self.objective is not None and self.teacher is not None:
            loss = self.objective(epoch, self.target, self.teacher, self.trainer)
        unlearnt = [example.response.prompt for example in dropped]
        adapter = self.learn([example.response for example in epoch], path, unlearnt, index, loss)
        return replace(adapter, num_examples=len(corpus))

    def epoch(self, corpus: Sequence[Scored]) -> list[Scored]:
        """What an epoch goes through: ``corpus``, repeated where it is smaller than ``fill_epoch_to``."""
        return list(islice(cycle(corpus), max(len(corpus), self.fill_epoch_to or 0)))

    def learn(
        self,
        responses: Sequence[Response],
        path: Path,
        dropped: Sequence[Prompt] = (),
        index: int = 0,
        loss: "Loss | None" = None,
    ) -> Adapter:
        """An adapter trained on ``responses``, by their nll or ``loss``, and saved as ``path`` in the run's folder."""
        from tskd.modules.finetuner import finetune

        examples = [encode_response(self.target, r.prompt, r.text, r.finished) for r in responses]
        replay, generated = self._rehearsal(dropped, index)
        key = f"{self.seed}/train/{index}"
        mean_nll, left_out = finetune(
            self.target.weights,
            examples,
            self.lora,
            self.trainer,
            self.folder / path,
            seed=random.Random(key).getrandbits(63),
            key=key,
            replay=replay,
            log_step=self.log_step,
            label=f"{index} train",
            loss=loss,
            drop_not_finite=self.not_finite == "drop",
        )
        trained = self.lora.epochs * sum(example.num_targets for example in examples)
        return Adapter(str(path), self.target.name, len(responses), mean_nll, trained, generated, left_out)

    def _rehearsal(self, dropped: Sequence[Prompt], index: int) -> tuple[list[TokenSequence], int]:
        """The replayed sequences, and how many tokens were generated for them first in this iteration."""
        if self.replay.source == "free":
            texts, tokens = self._free_texts
            # Asked of the folder, not of this process: a resumed run must count as an uninterrupted one does.
            is_first = not any((self.folder / f"iteration_{past}" / "adapter").exists() for past in range(index))
            return texts, tokens if is_first else 0
        if self.replay.source == "none" or not dropped:
            return [], 0
        requests = [Request(encode_prefix(self.target, self.target.template.prefix(prompt))) for prompt in dropped]
        sampling = Sampling(self.replay.max_new_tokens)
        answers = generate(self.target, requests, sampling, self.trainer, self.engine, label="replay")
        sequences = [
            encode_response(self.target, prompt, answer.text.strip(), answer.finished)
            for prompt, answer in zip(dropped, answers, strict=True)
        ]
        return sequences, sum(answer.tokens for answer in answers)

    @cached_property
    def _free_texts(self) -> tuple[list[TokenSequence], int]:
        start = (self.target.start_token,)
        requests = [Request(start, f"{self.seed}/replay/{i}") for i in range(self.replay.num_texts)]
        sampling = Sampling(self.replay.max_new_tokens, temperature=1.0)
        texts = generate(self.target, requests, sampling, self.trainer, self.engine, label="replay")
        return [self._free_text(text.text.strip(), text.finished) for text in texts], sum(text.tokens for text in texts)

    def _free_text(self, text: str, finished: bool) -> TokenSequence:
        ids = encode_text(self.target, text).input_ids
        end = [self.target.template.end_token()] if finished or not ids else []
        return TokenSequence((self.target.start_token, *ids, *end), first_target=1)


@dataclass(frozen=True)
class DiffVector:
    """The teacher's adapter, as it is, on a target of the base's shapes: nothing is trained, whatever was kept.

    The change that fine-tuning made to one model, added to another (diff vectors, arXiv 2503.20110); there it is of
    all weights and between versions of one model.
    """

    base: LanguageModel
    teacher: LanguageModel
    target: LanguageModel
    folder: Path = field(compare=False)

    def check_models(self) -> None:
        """Raise ``ConfigError`` where the target has other shapes, or the teacher no adapter. Loads no weights."""
        if self.teacher.adapter is None:
            raise ConfigError(
                f"`training=diff_vector` moves the teacher's adapter, and {self.teacher.name!r} is a whole model; "
                f"choose `teacher=adapter` or finetuned, or another `training`."
            )
        if difference := different_shapes(self.base.weights, self.target.weights):
            raise ConfigError(
                f"`training=diff_vector` needs a target of the base's shapes, and {self.target.name!r} differs from "
                f"{self.base.name!r}: {difference}; choose such a target, or another `training`."
            )

    def __call__(self, corpus: Sequence[Scored], dropped: Sequence[Scored], index: int) -> Adapter:
        """The adapter, copied to ``iteration_<index>/adapter`` of the run's folder."""
        path = Path(f"iteration_{index}") / "adapter"
        with atomic_files.write_errors(self.folder / path):
            atomic_files.copy_folder(adapter_folder(str(self.teacher.adapter)), self.folder / path)
        return Adapter(str(path), self.target.name, num_examples=0, loss=None)
