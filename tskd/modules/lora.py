"""The settings of LoRA training; ``tskd.modules.finetuner`` trains with them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from tskd.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

StepLog = Callable[[int, float], None]
KEPT = 16  # times the memory that decoding needs for a token: training keeps what every layer made of it


@dataclass(frozen=True)
class LoraSettings:
    """The adapter and its optimisation: AdamW, warm-up then linear decay to zero.

    ``use_dora`` and ``use_rslora`` are PEFT's: DoRA (Liu et al. 2024, arXiv 2402.09353) learns how long the columns of
    a weight are beside where they point; rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) scales by alpha / sqrt(rank),
    not alpha / rank. ``gradient_checkpointing`` computes activations twice instead of keeping them; the results stay
    the same. ``fused_loss`` has the nll of examples computed by ``tskd.models.networks.fused_nll``; rounding differs.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: NonNegativeFloat = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    learning_rate: PositiveFloat = 2e-4
    weight_decay: NonNegativeFloat = 0.0
    warmup: NonNegativeFloat = 0.05
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 8
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    fused_loss: bool = False
    replay_loss: Literal["kl", "nll"] = "kl"
    replay_weight: NonNegativeFloat = 10.0

    def check_device(self, device: "torch.device") -> None:
        """Raise ``ConfigError`` where ``device`` cannot compute what is set."""
        if self.fused_loss and (device.type != "cuda" or find_spec("cut_cross_entropy") is None):
            raise ConfigError(
                f"`fused_loss` needs CUDA and cut_cross_entropy (pip install 'tskd[kernels]'), and the device is "
                f"{device}; set `training.lora.fused_loss=false`."
            )

    def lora_config(self) -> "LoraConfig":
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            task_type="CAUSAL_LM",
        )
