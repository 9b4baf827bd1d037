"""The Lightning Trainer behind every stage: device, precision, memory bound and progress bar, decided once."""

import logging
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from pydantic import PositiveInt
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]

from tskd.errors import ConfigError, ModelError, one_line
from tskd.models.memory import available_memory, free_memory
from tskd.models.weights import Weights
from tskd.runtime import gpus, interrupts, processes

for _name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # a banner about devices before each stage
# Lightning's advice for data on disk; these batches are made in memory, and worker processes would only cost.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
# Lightning calls a function that torch 2.13 has deprecated.
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
# It would have every process started by srun wherever there is one, on a cluster's login node too.
warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
# Frozen models stay in evaluation mode on purpose; the finetuner sets the mode that it needs.
warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")

Result = TypeVar("Result")
log = logging.getLogger(__name__)
WORKING_MEMORY = 0.5  # what a stage needs beside the weights, for each byte of them, before it pays to make room
CPU_BATCH_TOKENS = 32768  # decoding reads all weights for each token of a row, so few rows cost as much as many


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


@dataclass(frozen=True)
class LightningTrainer:
    """Makes a Trainer for one pass. ``max_batch_tokens`` bounds rows times length of every batch, and so the memory.

    ``None`` is 32768, or on a GPU one token per MB of its memory: a key-value cache takes 0.02 to 0.5 MB for each.
    ``sharded``: of each layer of a model, every process holds a part only, as long as it does not compute with it.
    ``keep_models``: whether models stay loaded for the stages and jobs to come, ``None`` while memory allows.
    It keeps nothing on disk; ``tskd.modules.resume.ResumableTrainer`` does, and goes on there.
    """

    accelerator: str = "auto"
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    sharded: bool = False
    max_batch_tokens: PositiveInt | None = None
    keep_models: bool | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.devices != processes.count():
            raise ConfigError(
                f"`trainer.devices` is {self.devices}, and the number of processes is {processes.count()}; start "
                f"`torchrun --nproc_per_node {self.devices} -m tskd.run trainer=ddp …`, or one with `devices: 1`."
            )
        if self.sharded and self.accelerator != "auto":
            raise ConfigError(
                f"`trainer.accelerator` is {self.accelerator!r}, and `trainer=fsdp` takes the accelerator that torch "
                f"finds; leave it at auto."
            )

    def key_content(self) -> list[Any]:
        return [self.device.type, self.precision]

    @property
    def shows_progress(self) -> bool:
        if processes.rank() > 0:
            return False
        return sys.stderr.isatty() if self.progress is None else self.progress

    @cached_property
    def device(self) -> torch.device:
        """Where models are put. Raises ``ConfigError`` where there is no such accelerator."""
        try:
            return self._make().strategy.root_device  # type: ignore[no-any-return]
        except (MisconfigurationException, ValueError) as error:
            raise ConfigError(
                f"`trainer.accelerator` is {self.accelerator!r}: {one_line(error)} Choose another, like auto or cpu."
            ) from error

    @property
    def batch_tokens(self) -> int:
        if self.max_batch_tokens is not None:
            return self.max_batch_tokens
        if self.device.type != "cuda":
            return CPU_BATCH_TOKENS
        return max(CPU_BATCH_TOKENS, torch.cuda.get_device_properties(self.device).total_memory // 10**6)

    def pass_cost(self, weights: Weights) -> int:
        """What a pass of a model costs beside its tokens, in tokens that could have been computed meanwhile.

        So much padding is worth a pass less. On one core, 26 to 35 tokens were measured with 135M and 270M parameters,
        and of a tiny model a pass costs more than its tokens; on a GPU it is a guess.
        """
        return 32 + 4 * 10**9 // weights.size.weights if self.device.type == "cpu" else 4096

    def make_room(self, *needed: Weights) -> None:
        """Release other models where those that are ``needed`` would not fit beside them, or where none is kept."""
        others = [weights for weights in Weights.alive if weights.is_loaded and weights not in needed]
        parts = processes.count() if self.sharded else 1
        to_load = sum(weights.size.weights // parts for weights in needed if not weights.is_loaded)
        if self.keep_models is None:
            must_go = to_load > 0 and to_load * (1 + WORKING_MEMORY) > available_memory(self.device)
        else:
            must_go = not self.keep_models
        for weights in others if must_go else ():
            weights.release()

    def predict(self, module: Resident, batches: Sequence[list[int]]) -> dict[int, Any]:
        """Compute the result of each input of ``batches`` that ``module`` has none of yet.

        Returns:
            All results of ``module``, by the index of the input.
        """
        left = [rest for batch in batches if (rest := [i for i in batch if i not in module.results])]
        if mine := processes.shard(left, module.in_step):
            # What a sharded model gathers in inference mode could never be trained with.
            trainer = self._make(inference_mode=not module.in_step)
            trainer.predict(module, epoch_loader(mine), return_predictions=False)
        return processes.all_gather(module.results)

    def fit(
        self,
        module: Resident,
        epochs: int,
        checkpoint: Path | None = None,
        save: Callable[[Callable[[Path], None]], None] | None = None,
    ) -> None:
        """Train ``module`` on its own ``train_dataloader``, made anew for each epoch.

        Args:
            module: What is trained.
            epochs: How many times it goes through its data.
            checkpoint: Where to go on, at the end of an epoch.
            save: Called at the end of each epoch with a function that writes a checkpoint to a path.
        """
        callbacks = [] if save is None else [_EachEpoch(save)]
        trainer = self._make(callbacks, max_epochs=epochs, reload_dataloaders_every_n_epochs=1)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)

    def recall(self, content: Any) -> tuple[dict[int, Any], Callable[[Mapping[int, Any]], None]]:
        """Return what an earlier attempt kept of the work that ``content`` decides, and what keeps more of it.

        Returns:
            The results as plain JSON, by index, and a function that keeps further ones; here nothing is kept.
        """
        return {}, lambda results: None

    def _devices(self) -> int | list[int]:
        """How many, or where it matters which, their numbers."""
        number = processes.local_rank() if processes.count() > 1 else gpus.claimed
        return 1 if number is None or self.accelerator == "cpu" or not torch.cuda.is_available() else [number]

    def _make(self, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
        trainer = pl.Trainer(
            accelerator=self.accelerator,
            devices=self._devices(),
            plugins=[LightningEnvironment(), _InPlace()],  # each process is a whole Trainer of its own
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[*callbacks, *([_Bar()] if self.shows_progress else [])],
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
