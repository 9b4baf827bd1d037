"""LoRA training of a language model on prompt-response pairs, with replay of what it said before.

The loss is the negative log-likelihood of the response tokens (TuneShift-KD; Hinton-style soft labels would need one
tokenizer for teacher and target). Replay adds texts of the untouched model's own, on which the adapter is held to say
the same: an answer to forgetting that needs no data (Bansal & Sanghavi 2025, arXiv 2505.13811).
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors import SafetensorError
from torch import Tensor

from tskd.errors import ModelError, RunFolderError
from tskd.models import LanguageModel, Weights, hidden_states, vocabulary_head
from tskd.modules.batches import PaddedBatch, TokenSequence, check_context, pad_right, shuffled
from tskd.modules.trainer import LightningTrainer, Resident, epoch_loader
from tskd.perplexity import token_kl, token_nll

StepLog = Callable[[int, float], None]


@dataclass(frozen=True)
class LoraSettings:
    """The adapter and its optimisation: AdamW, warm-up then linear decay to zero.

    ``gradient_checkpointing`` computes activations twice instead of keeping them; results stay the same.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: NonNegativeFloat = 0.0
    target_modules: str | list[str] = "all-linear"
    learning_rate: PositiveFloat = 2e-4
    weight_decay: NonNegativeFloat = 0.0
    warmup: NonNegativeFloat = 0.05
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 8
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    replay_loss: Literal["kl", "nll"] = "kl"
    replay_weight: NonNegativeFloat = 1.0

    def lora_config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            task_type="CAUSAL_LM",
        )


class Finetuner(Resident):
    """One adapter in training. Each step takes a batch of examples and, beside it, a batch of replay."""

    def __init__(
        self,
        weights: Weights,
        examples: Sequence[TokenSequence],
        replay: Sequence[TokenSequence],
        settings: LoraSettings,
        key: str,
        log_step: StepLog | None,
        label: str = "train",
    ) -> None:
        super().__init__(weights)
        self.weights = weights
        self.pad = LanguageModel(weights).pad_token
        self.examples = examples
        self.replay = replay
        self.settings = settings
        self.key = key
        self.log_step = log_step
        self.label = label
        self.losses: list[tuple[float, int]] = []  # of each step: the mean, and over how many target tokens

    def train_dataloader(self) -> Any:
        key = f"{self.key}/epoch {self.current_epoch}"
        batches = shuffled(len(self.examples), self.settings.batch_size, key)
        replay = self._replay_batches(len(batches), key)
        return epoch_loader(
            [
                (pad_right([self.examples[i] for i in batch], self.pad), again)
                for batch, again in zip(batches, replay, strict=True)
            ]
        )

    def training_step(self, batch: tuple[PaddedBatch, PaddedBatch | None]) -> Tensor:
        examples, replay = batch
        loss = self.example_loss(examples)
        self._log(loss, len(examples.labels))
        if replay is not None:
            loss = loss + self.settings.replay_weight * self.replay_loss(replay)
        return loss

    def example_loss(self, batch: PaddedBatch) -> Tensor:
        """Mean nll of the batch's target tokens."""
        return token_nll(self._hidden(batch), batch.labels, self._head).mean()

    def replay_loss(self, batch: PaddedBatch) -> Tensor:
        """How far the adapter has moved on the model's own texts: mean KL to the untouched model, or their nll."""
        if self.settings.replay_loss == "nll":
            return self.example_loss(batch)
        with torch.no_grad(), self.network.disable_adapter():
            untouched = self._hidden(batch)
        return token_kl(self._hidden(batch), untouched, self._head).mean()

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        settings = self.settings
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        steps = settings.epochs * self.steps_per_epoch
        warmup = max(1, round(settings.warmup * steps))

        def rate(step: int) -> float:
            return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def network(self) -> Any:
        return self.weights.model

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.settings.batch_size)

    @property
    def loss(self) -> float:
        """Mean over the target tokens of the last epoch, in nats per response token."""
        last = self.losses[-self.steps_per_epoch :]
        return sum(loss * tokens for loss, tokens in last) / sum(tokens for _, tokens in last)

    def _hidden(self, batch: PaddedBatch) -> Tensor:
        return hidden_states(self.network, batch.input_ids, batch.attention_mask)[batch.rows, batch.columns]

    def _replay_batches(self, count: int, key: str) -> list[PaddedBatch | None]:
        if not self.replay:
            return [None] * count
        order: list[int] = []
        while len(order) < count * self.settings.batch_size:
            order += shuffled(len(self.replay), len(self.replay), f"{key}/replay {len(order)}")[0]
        size = self.settings.batch_size
        return [pad_right([self.replay[i] for i in order[n * size : (n + 1) * size]], self.pad) for n in range(count)]

    def _head(self, hidden: Tensor) -> Tensor:
        return vocabulary_head(self.network, hidden)

    def _log(self, loss: Tensor, tokens: int) -> None:
        value = loss.item()
        if not torch.isfinite(loss):
            raise ModelError(
                f"The training loss became {value} at step {self.global_step}; lower `training.learning_rate` "
                f"({self.settings.learning_rate:g}), or use float32 weights."
            )
        self.losses.append((value, tokens))
        if self.log_step is not None:
            self.log_step(self.global_step, value)


def finetune(
    weights: Weights,
    examples: Sequence[TokenSequence],
    settings: LoraSettings,
    trainer: LightningTrainer,
    save_to: Path,
    *,
    seed: int,
    key: str,
    replay: Sequence[TokenSequence] = (),
    log_step: StepLog | None = None,
    label: str = "train",
) -> float:
    """Train a fresh LoRA adapter on ``examples``, save it in PEFT's format, and return its last epoch's mean loss.

    Initial weights follow from ``seed``, the order of the examples from ``key``; dropout from both. The folder
    ``save_to`` is replaced, once the adapter is whole. Raises ``RunFolderError`` where it cannot be written.
    """
    model = LanguageModel(weights)
    longest = max(len(sequence.ids) for sequence in [*examples, *replay])
    check_context(model, longest, "The longest training example")
    network = weights.fresh_adapter(settings.lora_config(), seed)
    network.train()
    if settings.gradient_checkpointing:
        network.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    module = Finetuner(weights, examples, replay, settings, key, log_step, label)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer.fit(module, settings.epochs, gradient_clip_val=settings.max_grad_norm)
    if settings.gradient_checkpointing:
        network.get_base_model().activation_checkpointing_disable()
    network.eval()
    network.peft_config["default"].base_model_name_or_path = weights.checkpoint.path
    _save(network, save_to)
    weights.adopt(str(save_to))
    return module.loss


def _save(network: Any, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        network.save_pretrained(str(partial), save_embedding_layers=False)
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())  # some file systems say only now that they are full
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"Cannot write the adapter {folder}: {reason}. What was computed before is kept; once it can be written, "
            f"go on with `resume=`."
        ) from error
