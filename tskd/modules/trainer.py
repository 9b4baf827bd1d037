"""The Lightning Trainer behind every stage: device, precision, memory bound and progress bar, decided once."""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pydantic import PositiveInt
from pytorch_lightning.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader

from tskd.errors import ConfigError

for _name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # a banner about devices before each stage
# Lightning's advice for data on disk; these batches are made in memory, and worker processes would only cost.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
# Lightning calls a function that torch 2.13 has deprecated.
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
# Frozen models stay in evaluation mode on purpose; the finetuner sets the mode that it needs.
warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")


class Resident(pl.LightningModule):
    """A LightningModule whose weights stay on the device after a pass, for the stage that comes next.

    In prediction it notes its ``results`` by the index of the input, as plain values: Lightning would gather what
    ``predict_step`` returns by walking into it, which frozen records refuse.
    """

    label = "work"

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[int, Any] = {}

    def cpu(self) -> "Resident":
        # Lightning's teardown moves a module to the CPU; several stages share these weights.
        return self


class _Labelled(TQDMProgressBar):
    """A progress bar that says what is being done, and leaves nothing behind."""

    def init_predict_tqdm(self) -> Any:
        bar = super().init_predict_tqdm()
        bar.set_description_str(self.trainer.lightning_module.label)
        bar.leave = False
        return bar

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar


@dataclass(frozen=True)
class LightningTrainer:
    """Makes a Trainer for one pass. ``max_batch_tokens`` bounds rows times length of every batch, and so the memory."""

    accelerator: str = "auto"
    devices: PositiveInt = 1
    precision: str = "32-true"
    max_batch_tokens: PositiveInt = 8192
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.precision == "bf16-true" or self.precision == "16-true":
            raise ConfigError(
                f"`trainer.precision={self.precision}` would cast the LoRA weights too; "
                f"set the model's own dtype instead (`target.checkpoint.dtype=bfloat16`)."
            )

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
        progress = sys.stderr.isatty() if self.progress is None else self.progress
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            callbacks=[_Labelled()] if progress else [],
            num_sanity_val_steps=0,
            **settings,
        )


def epoch_loader(batches: Sequence[Any]) -> DataLoader[Any]:
    """The batches of one pass, in the order given."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
