"""Where a model is and how it is to be loaded; its folder, from the hub where it is not here, and its size.

Nothing here loads weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tskd.errors import ConfigError, ModelError, one_line

ZOO = "zoo://"  # checkpoints shipped with the package
_LOADED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_SECOND_COPY = ["original/*", "consolidated*"]  # the same weights in their makers' own format (Llama 3, Mistral)
DTYPES = ("float32", "bfloat16", "float16", "auto")


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


def is_hub_id(path: str) -> bool:
    """Whether ``path`` can only be the hub's: ``owner/name``, and no folder here."""
    is_place = path.startswith((ZOO, "/", ".", "~")) or path.count("/") != 1
    return not is_place and not Path(path).expanduser().is_dir()


def is_here(path: str, find: Callable[[], Path]) -> bool:
    """Whether ``find`` finds ``path`` without the hub. Raises its error where the hub cannot have it either."""
    try:
        find()
    except ModelError as error:
        from huggingface_hub.errors import HFValidationError

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
    shipped = Path(__file__).parents[1] / "zoo" / path.removeprefix(ZOO)
    folder = shipped if path.startswith(ZOO) else Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(path):
        raise ModelError(f"There is no folder {folder} for {what}; give a folder, or a hub id like `owner/name`.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RevisionNotFoundError

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
