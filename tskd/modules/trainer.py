"""The Lightning Trainer behind every stage: device, precision, memory bound and progress bar, decided once."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from tskd.errors import ConfigError, one_line
from tskd.models.memory import available_memory
from tskd.models.weights import Weights
from tskd.runtime import gpus, processes

if TYPE_CHECKING:
    import torch
    from pytorch_lightning import Trainer

    from tskd.modules.resident import Resident

WORKING_MEMORY = 0.5  # what a stage needs beside the weights, for each byte of them, before it pays to make room
CPU_BATCH_TOKENS = 32768  # decoding reads all weights for each token of a row, so few rows cost as much as many


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
    def device(self) -> "torch.device":
        """Where models are put. Raises ``ConfigError`` where there is no such accelerator."""
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

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
        import torch

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

    def predict(self, module: "Resident", batches: Sequence[list[int]]) -> dict[int, Any]:
        """Compute the result of each input of ``batches`` that ``module`` has none of yet.

        Returns:
            All results of ``module``, by the index of the input.
        """
        from tskd.modules.resident import epoch_loader

        left = [rest for batch in batches if (rest := [i for i in batch if i not in module.results])]
        if mine := processes.shard(left, module.in_step):
            # What a sharded model gathers in inference mode could never be trained with.
            trainer = self._make(inference_mode=not module.in_step)
            trainer.predict(module, epoch_loader(mine), return_predictions=False)
        return processes.all_gather(module.results)

    def fit(
        self,
        module: "Resident",
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
        trainer = self._make(save=save, max_epochs=epochs, reload_dataloaders_every_n_epochs=1)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)

    def recall(self, content: Any) -> tuple[dict[int, Any], Callable[[Mapping[int, Any]], None]]:
        """Return what an earlier attempt kept of the work that ``content`` decides, and what keeps more of it.

        Returns:
            The results as plain JSON, by index, and a function that keeps further ones; here nothing is kept.
        """
        return {}, lambda results: None

    def _make(self, **settings: Any) -> "Trainer":
        from tskd.modules.resident import lightning_trainer

        return lightning_trainer(self.accelerator, self._devices(), self.precision, self.shows_progress, **settings)

    def _devices(self) -> int | list[int]:
        """How many, or where it matters which, their numbers."""
        import torch

        number = processes.local_rank() if processes.count() > 1 else gpus.claimed
        return 1 if number is None or self.accelerator == "cpu" or not torch.cuda.is_available() else [number]
