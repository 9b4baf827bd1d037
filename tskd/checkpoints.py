"""Where a model is and how it is to be loaded; its folder, from the hub where it is not here, and its size.

Nothing here loads weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RevisionNotFoundError
from torch import nn
from transformers import AutoModelForCausalLM

from tskd.errors import ConfigError, ModelError
from tskd.perplexity import CHUNK

ZOO = "zoo://"  # checkpoints shipped with the package
_LOADED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_SECOND_COPY = ["original/*", "consolidated*"]  # the same weights in their makers' own format (Llama 3, Mistral)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}


@dataclass(frozen=True)
class Checkpoint:
    """Where a pre-trained model is, how to load it, and what to know of it.

    ``path`` is a hub id, a folder, or ``zoo://`` and a name. ``quantization`` is done while loading, by bitsandbytes.
    """

    name: str
    path: str
    revision: str | None = None  # a commit of the hub's; the newest where there is none
    dtype: str = "auto"
    attention: str | None = None  # the library's choice for the architecture
    template: str = "auto"
    device_map: str | None = None  # `auto` spreads a large model over all devices; None leaves it to the trainer
    quantization: Literal["none", "8bit", "4bit"] = "none"
    architecture: str = ""  # transformers' `model_type`
    licence: str = ""
    gated: bool = False  # whether the hub asks for the licence to be accepted first
    sharded: bool = False  # each process holds a part of every layer; the trainer decides

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"Model {self.name!r} has dtype {self.dtype!r}; use one of {', '.join(DTYPES)}.")
        if "/" in (self.attention or ""):
            raise ModelError(
                f"Model {self.name!r} has attention {self.attention!r}, which would run code from the hub; use one "
                f"that is installed, like sdpa or flash_attention_2."
            )
        if self.sharded and (self.device_map is not None or self.quantization != "none"):
            raise ConfigError(
                f"Model {self.name!r} has device_map {self.device_map} and quantization {self.quantization}, and "
                f"`trainer=fsdp` shares out the layers of whole models itself; set `device_map: null` and "
                f"`quantization: none`, or choose another trainer."
            )
        if self.path.startswith(ZOO) or Path(self.path).expanduser().is_dir():
            object.__setattr__(self, "revision", None)  # of the hub's repository; a folder may hold anything

    @property
    def is_placed(self) -> bool:
        """Whether the model is put on its devices while it is loaded; nothing may move it afterwards."""
        return self.device_map is not None or self.quantization != "none" or self.sharded


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
        text = config.get_text_config()
        dtype: Any = config.dtype if checkpoint.dtype == "auto" else DTYPES[checkpoint.dtype]
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
        rows = max(1, min(texts, max_tokens // max(1, longest)))
        tokens = rows * longest
        if generates:
            return tokens * (self.layer + self.cache) + 32 * rows * self.vocabulary
        return tokens * self.layer + 8 * CHUNK * self.vocabulary

    def to_train(self, texts: int, longest: int, max_tokens: int, recomputes: bool) -> int:
        """The same for training, without the adapter and its optimiser.

        The activations of all layers are kept for the backward pass, or of each what enters it where it ``recomputes``.
        """
        tokens = max(1, min(texts, max_tokens // max(1, longest))) * longest
        kept = self.layers * self.layer // (34 if recomputes else 1)
        return tokens * (self.layer + kept) + 16 * CHUNK * self.vocabulary


def is_hub_id(path: str) -> bool:
    """Whether ``path`` can only be the hub's: ``owner/name``, and no folder here."""
    is_place = path.startswith((ZOO, "/", ".", "~")) or path.count("/") != 1
    return not is_place and not Path(path).expanduser().is_dir()


def is_here(path: str, find: Callable[[], Path]) -> bool:
    """Whether ``find`` finds ``path`` without the hub. Raises its error where the hub cannot have it either."""
    try:
        find()
    except ModelError as error:
        if not is_hub_id(path) or isinstance(error.__cause__, HFValidationError):
            raise
        return False
    return True


def adapter_folder(adapter: str) -> Path:
    """The local folder of an adapter given by folder, hub id or zoo name, checked to hold one."""
    folder = local_folder(adapter, "adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise ModelError(f"Adapter folder {folder} has no {file}; give the folder of a PEFT LoRA adapter.")
    return folder


def local_folder(path: str, what: str, revision: str | None = None, gated: bool = False) -> Path:
    shipped = Path(__file__).parent / "zoo" / path.removeprefix(ZOO)
    folder = shipped if path.startswith(ZOO) else Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(path):
        raise ModelError(f"There is no folder {folder} for {what}; give a folder, or a hub id like `owner/name`.")
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_LOADED, ignore_patterns=_SECOND_COPY))
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{what} {path} has no revision {revision}; give one that it has, or null for the newest."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        # Offline, or without a token, the hub does not tell that a model is gated.
        if gated or isinstance(error, GatedRepoError):
            raise ModelError(
                f"{what} {path} is gated: accept its licence on the hub, then `hf auth login`; "
                f"or give a folder that holds it. ({one_line(error)})"
            ) from error
        raise ModelError(
            f"{what} {path} is neither a folder here nor to be had from the hub: {one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
