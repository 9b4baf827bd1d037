"""Memory: what is free, what a model takes, and how to give it back."""

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]

from tskd.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch


def available_memory(device: "torch.device") -> int:
    """Bytes that can still be had, on a GPU without what torch holds in reserve."""
    import torch

    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return int(psutil.virtual_memory().available)


def machine(device: "torch.device") -> tuple[str, int]:
    """What computes, and its memory in bytes."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory
    return "this machine", int(psutil.virtual_memory().total)


def free_memory() -> None:
    """Give back what nothing refers to any more, to the device too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Size:
    """What a model takes, counted on one without memory that is made from its configuration; bytes are estimates.

    For a token, ``cache`` are the keys and values of all layers, and ``layer`` the activations of one: 34 bytes for a
    hidden unit of 16 bits, without attention scores (Korthikanti et al. 2022, arXiv 2205.05198).
    """

    parameters: int
    weights: int
    cache: int
    layer: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Any) -> "Size":
        """``config`` is the model's own, as transformers reads it."""
        import torch
        from torch import nn
        from transformers import AutoModelForCausalLM

        text = config.get_text_config()
        dtype: Any = config.dtype if checkpoint.dtype == "auto" else getattr(torch, checkpoint.dtype)
        width = (dtype or torch.float32).itemsize
        with torch.device("meta"):
            bare: Any = AutoModelForCausalLM.from_config(config)
        parameters, head = sum(p.numel() for p in bare.parameters()), bare.get_output_embeddings()
        # What bitsandbytes quantises.
        linear = sum(m.weight.numel() for m in bare.modules() if isinstance(m, nn.Linear) and m is not head)
        in_linear = {"none": width, "8bit": 1, "4bit": 0.5}[checkpoint.quantization]
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        layers: int = text.num_hidden_layers
        taken, cache = int((parameters - linear) * width + linear * in_linear), 2 * layers * heads * head_width * width
        return cls(parameters, taken, cache, 34 * text.hidden_size * width // 2, layers, text.vocab_size)

    def to_read(self, texts: int, longest: int, max_tokens: int, generates: bool) -> int:
        """What the largest batch takes beside the weights: activations of a layer, and logits.

        Where it generates, the cache comes to it, and sampling copies the logits of each row in double precision.
        """
        from tskd.models.logprobs import CHUNK

        rows = max(1, min(texts, max_tokens // max(1, longest)))
        tokens = rows * longest
        if generates:
            return tokens * (self.layer + self.cache) + 32 * rows * self.vocabulary
        return tokens * self.layer + 8 * CHUNK * self.vocabulary

    def to_train(self, texts: int, longest: int, max_tokens: int, recomputes: bool) -> int:
        """The same for training, without the adapter and its optimiser.

        The activations of all layers are kept for the backward pass, or of each what enters it where it ``recomputes``.
        """
        from tskd.models.logprobs import CHUNK

        tokens = max(1, min(texts, max_tokens // max(1, longest))) * longest
        kept = self.layers * self.layer // (34 if recomputes else 1)
        return tokens * (self.layer + kept) + 16 * CHUNK * self.vocabulary
