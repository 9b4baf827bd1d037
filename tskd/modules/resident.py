"""What runs inside a pass of Lightning: modules whose weights stay on the device, a bar, halved batches."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]

from tskd.errors import ModelError
from tskd.models.memory import free_memory
from tskd.models.weights import Weights
from tskd.runtime import interrupts, processes

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Resident(pl.LightningModule):
    """A LightningModule whose weights stay on the device after a pass, for the stage that comes next.

    A prediction pass is told the indices of the inputs of each batch and notes what ``compute`` makes of them in
    ``results``, as plain values: Lightning would gather what ``predict_step`` returns by walking into it, which frozen
    records refuse. Where memory runs out, this batch and those after it are halved.
    """

    label = "work"
    note: Callable[[dict[int, Any]], None] | None = None  # what is done with results as soon as they are there

    def __init__(self, *weights: Weights) -> None:
        super().__init__()
        self.results: dict[int, Any] = {}
        self.parts = 1  # in which each batch is computed
        self.in_step = any(each.checkpoint.sharded for each in weights)  # with the other processes, pass by pass
        # Lightning moves what is registered here; what transformers has placed (quantised, or spread) must stay there.
        self.movable = torch.nn.ModuleList(
            {id(each): each.model for each in weights if not each.checkpoint.is_placed}.values()
        )

    def anyone(self, here: bool) -> bool:
        """Whether it is so ``here``, or where processes are in step, in any of them."""
        return bool(processes.all_reduce_max(int(here))) if self.in_step else here

    def compute(self, indices: list[int]) -> list[Any]:
        """The result of each of the inputs ``indices``, all in one batch."""
        raise NotImplementedError

    def content(self) -> Any:
        """Return what decides the results, for a journal to find them; ``None`` if they are not worth keeping."""
        return None

    def from_journal(self, noted: Any) -> Any:
        """The result that a journal gives back as ``noted``, in plain JSON."""
        return noted

    def predict_step(self, indices: list[int]) -> list[int]:
        waiting = cut(indices, self.parts)
        while waiting:
            interrupts.check()
            part = waiting.pop(0)
            if (found := attempt(self.compute, part)) is None:
                self.parts *= 2
                self.tell_parts(len(part))
                waiting = cut(part, 2) + waiting
            else:
                done = dict(zip(part, found, strict=True))
                self.results |= done
                if self.note is not None:
                    self.note(done)
        return indices

    def tell_parts(self, rows: int) -> None:
        """Say that batches get smaller. Raises ``ModelError`` where ``rows`` is one and there is no smaller batch.

        In step too: of a pass that one process breaks off, the others wait for the rest.
        """
        if self.in_step:
            raise ModelError(
                f"There is not enough memory to {self.label} {rows} texts at once, and with `trainer=fsdp` batches are "
                f"not halved; lower `trainer.max_batch_tokens`, or share the model out over more processes."
            )
        if rows == 1:
            raise ModelError(
                f"There is not enough memory to {self.label} a single text; load the model in a smaller `dtype` or "
                f"quantised, or shorten the texts."
            )
        log.warning(
            "Out of memory in %s with %d texts; batches are cut into %d parts from here on. A lower "
            "`trainer.max_batch_tokens` spares the attempt.",
            *(self.label, rows, self.parts),
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
        self._open(pl_module, sum(map(len, trainer.predict_dataloaders.dataset)), " texts")

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


class _EachEpoch(pl.Callback):
    """Hand the end of each epoch of a training to ``save``."""

    def __init__(self, save: Callable[[Callable[[Path], None]], None]) -> None:
        self.save = save

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer.save_checkpoint)


class _InPlace(TorchCheckpointIO):
    """Checkpoints are written where they belong; Lightning's are in memory and in the temporary folder before that."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)


def _quiet_lightning() -> None:
    """Silence what Lightning prints in each pass.

    Called for each pass: a caller may have restored the warning filters since.
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a banner about devices before each stage
    # Lightning's advice for data on disk; these batches are made in memory, and worker processes would only cost.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning calls a function that torch 2.13 has deprecated.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # It would have every process started by srun wherever there is one, on a cluster's login node too.
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # Frozen models stay in evaluation mode on purpose; the finetuner sets the mode that it needs.
    warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")


def lightning_trainer(
    accelerator: str,
    devices: int | list[int],
    precision: Any,
    with_bar: bool,
    save: Callable[[Callable[[Path], None]], None] | None = None,
    **settings: Any,
) -> pl.Trainer:
    """Make Lightning's Trainer for one pass, or one training at the end of whose epochs ``save`` is called."""
    _quiet_lightning()
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        plugins=[LightningEnvironment(), _InPlace()],  # each process is a whole Trainer of its own
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[*([] if save is None else [_EachEpoch(save)]), *([_Bar()] if with_bar else [])],
        num_sanity_val_steps=0,
        **settings,
    )
    # It would end a training at SIGTERM, which is ours to heed, and under submitit nobody's: Slurm sends it before
    # the signal that has the job queued again, and a job that ends in between is over.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def cut(indices: Sequence[int], parts: int) -> list[list[int]]:
    """``indices`` in up to ``parts`` runs of nearly equal length, in order."""
    size = max(1, math.ceil(len(indices) / parts))
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def attempt(compute: Callable[[list[int]], Result], indices: list[int]) -> Result | None:
    """``compute(indices)``, or ``None`` where memory does not suffice: then what the attempt held is free again."""
    try:
        return compute(indices)
    except RuntimeError as error:  # on a CPU it has no class of its own
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
    free_memory()  # only here, where the exception no longer holds the frames of the attempt
    return None


def epoch_loader(batches: Sequence[Any]) -> DataLoader[Any]:
    """The batches of one pass, in the order given."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
