"""The Lightning Trainer behind every stage: device, precision, memory bound and progress bar, decided once."""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from pydantic import PositiveInt
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]

from tskd.errors import ConfigError
from tskd.models import Weights

for _name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # a banner about devices before each stage
# Lightning's advice for data on disk; these batches are made in memory, and worker processes would only cost.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
# Lightning calls a function that torch 2.13 has deprecated.
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
# Frozen models stay in evaluation mode on purpose; the finetuner sets the mode that it needs.
warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")

CPU_BATCH_TOKENS = 32768  # decoding reads all weights for each token of a row, so few rows cost as much as many


class Resident(pl.LightningModule):
    """A LightningModule whose weights stay on the device after a pass, for the stage that comes next.

    In prediction it notes its ``results`` by the index of the input, as plain values: Lightning would gather what
    ``predict_step`` returns by walking into it, which frozen records refuse.
    """

    label = "work"

    def __init__(self, *weights: Weights) -> None:
        super().__init__()
        self.results: dict[int, Any] = {}
        # Lightning moves what is registered here; what transformers has placed (quantised, or spread) must stay there.
        self.movable = torch.nn.ModuleList(
            {id(each): each.model for each in weights if not each.checkpoint.is_placed}.values()
        )

    def cpu(self) -> "Resident":
        # Lightning's teardown moves a module to the CPU; several stages share these weights.
        return self


class _Bar(pl.Callback):
    """One bar for a whole pass, in training over all epochs; it says what is being done and leaves nothing behind.

    Lightning's own puts its words in the place of the label, and counts batches, which are few and unequal.
    """

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(pl_module, sum(len(indices) for indices, *_ in trainer.predict_dataloaders.dataset), " texts")

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        self._bar.update(len(outputs))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(pl_module, int(trainer.num_training_batches) * (trainer.max_epochs or 1), " steps")

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._bar.update()

    def teardown(self, *_: Any, **__: Any) -> None:
        self._bar.close()

    def on_exception(self, *_: Any) -> None:
        self._bar.close()

    def _open(self, module: pl.LightningModule, total: int, unit: str) -> None:
        self._bar = tqdm(desc=module.label, total=total, unit=unit, leave=False, dynamic_ncols=True)


@dataclass(frozen=True)
class LightningTrainer:
    """Makes a Trainer for one pass. ``max_batch_tokens`` bounds rows times length of every batch, and so the memory.

    ``None`` is 32768, or on a GPU one token per MB of its memory: a key-value cache takes 0.02 to 0.5 MB for each.
    """

    accelerator: str = "auto"
    devices: PositiveInt = 1
    precision: str = "32-true"
    max_batch_tokens: PositiveInt | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.precision == "bf16-true" or self.precision == "16-true":
            raise ConfigError(
                f"`trainer.precision={self.precision}` would cast the LoRA weights too; "
                f"set the model's own dtype instead (`target.checkpoint.dtype=bfloat16`)."
            )

    @property
    def shows_progress(self) -> bool:
        return sys.stderr.isatty() if self.progress is None else self.progress

    @cached_property
    def device(self) -> torch.device:
        """Where models are put."""
        return self._make().strategy.root_device  # type: ignore[no-any-return]

    @property
    def batch_tokens(self) -> int:
        if self.max_batch_tokens is not None:
            return self.max_batch_tokens
        if self.device.type != "cuda":
            return CPU_BATCH_TOKENS
        return max(CPU_BATCH_TOKENS, torch.cuda.get_device_properties(self.device).total_memory // 10**6)

    def predict(self, module: Resident, batches: Sequence[Any]) -> dict[int, Any]:
        """What ``module`` noted in ``results``, by the index of the input, once it has seen all batches."""
        if batches:
            trainer = self._make(inference_mode=True)
            trainer.predict(module, epoch_loader(batches), return_predictions=False)
        return module.results

    def fit(self, module: Resident, epochs: int, **settings: Any) -> None:
        """Train ``module`` on its own ``train_dataloader``, made anew for each epoch."""
        trainer = self._make(max_epochs=epochs, reload_dataloaders_every_n_epochs=1, **settings)
        trainer.fit(module)

    def _make(self, **settings: Any) -> pl.Trainer:
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[_Bar()] if self.shows_progress else [],
            num_sanity_val_steps=0,
            **settings,
        )


def epoch_loader(batches: Sequence[Any]) -> DataLoader[Any]:
    """The batches of one pass, in the order given."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
