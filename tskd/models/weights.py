"""Models in memory, and the adapters they speak with, loaded on first use.

``Weights`` are one checkpoint in memory with room for one LoRA adapter. A ``LanguageModel`` is those weights and the
adapter that speaks, or none: base and teacher, or the target before and after, are two faces of one set of weights.
"""

import copy
import json
import re
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from tskd.errors import ModelError, one_line
from tskd.models.checkpoint import Checkpoint, adapter_folder, local_folder
from tskd.models.libraries import quiet_libraries
from tskd.models.memory import Size, free_memory
from tskd.models.templates import Template, template_for
from tskd.storage.fingerprint import hash_adapter, hash_weights

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import BitsAndBytesConfig, GenerationConfig


class Weights:
    """One checkpoint, loaded on first use; at most one adapter is attached at a time, in the slot ``default``."""

    alive: ClassVar[WeakSet["Weights"]] = WeakSet()

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._attached: str | None = None
        self.alive.add(self)

    @cached_property
    def folder(self) -> Path:
        """The local folder of the checkpoint. Raises ``ModelError`` where there is none."""
        checkpoint = self.checkpoint
        return local_folder(checkpoint.path, f"model {checkpoint.name!r}", checkpoint.revision, checkpoint.gated)

    @property
    def resolved_revision(self) -> str | None:
        """The commit that ``folder`` holds, where it is the hub's: a snapshot's folder has its commit's name."""
        folder = self.folder
        is_snapshot = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
        return folder.name if is_snapshot else None

    @property
    def content(self) -> str:
        """What tells these weights from others: the hub's commit, or a digest of the files in the folder."""
        return self.resolved_revision or hash_weights(self.folder)

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        quiet_libraries()
        try:
            # Said each time, for by default transformers asks on the terminal whether to run a checkpoint's code.
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"Model {self.checkpoint.name!r} at {self.checkpoint.path}: {one_line(error)}") from error

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        quiet_libraries()
        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"Tokenizer of {self.checkpoint.name!r} at {self.folder}: {one_line(error)}") from error

    @cached_property
    def generation_config(self) -> "GenerationConfig":
        """What the checkpoint says of generation, if only in its configuration; it is read without the weights."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.folder)
        except OSError:
            return GenerationConfig.from_model_config(self.config)

    @cached_property
    def template(self) -> Template:
        return template_for(self.tokenizer, self.checkpoint.template)

    @cached_property
    def model(self) -> Any:
        """The model in evaluation mode, frozen; a ``PeftModel`` once an adapter has been attached."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        from tskd.models.networks import check_logits, make_head_input_contiguous, shard

        self.check_loadable()
        try:
            # A prediction pass runs in inference mode; tensors made in it could never be trained beside.
            with torch.inference_mode(False):
                model = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=self.checkpoint.dtype,
                    attn_implementation=self.checkpoint.attention,
                    device_map=self.checkpoint.device_map,
                    quantization_config=self._quantization(),
                    use_safetensors=True,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise ModelError(f"Model {self.checkpoint.name!r} at {self.checkpoint.path}: {one_line(error)}") from error
        make_head_input_contiguous(model)
        model.eval().requires_grad_(False)
        check_logits(model)
        if self.checkpoint.sharded:
            shard(model)
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        return weights_of, (self.checkpoint,)  # in another process, which loads them itself

    @property
    def is_loaded(self) -> bool:
        return "model" in self.__dict__

    @cached_property
    def size(self) -> Size:
        return Size.of(self.checkpoint, self.config)

    def key_content(self) -> list[Any]:
        checkpoint = self.checkpoint
        return [
            *(checkpoint.dtype, checkpoint.template, checkpoint.attention, checkpoint.quantization),
            self.content,
        ]

    @property
    def dtype(self) -> Any:
        """The data type that the weights are loaded in."""
        import torch

        return self.config.dtype if self.checkpoint.dtype == "auto" else getattr(torch, self.checkpoint.dtype)

    def emulated_on(self, device: "torch.device") -> str | None:
        """The data type that the model is in, where ``device`` is a CPU that has no instructions to multiply in it."""
        import torch

        # torch has no public way to ask; without instructions it takes a slow path (measured in experiments/bench).
        cpu: Any = torch.ops.mkldnn
        has_instructions = {
            torch.bfloat16: cpu._is_mkldnn_bf16_supported,
            torch.float16: cpu._is_mkldnn_fp16_supported,
        }.get(self.dtype)
        if device.type != "cpu" or has_instructions is None or self.checkpoint.quantization != "none":
            return None
        return None if has_instructions() else str(self.dtype).removeprefix("torch.")

    @property
    def max_length(self) -> int | None:
        """The most tokens that fit the model's positions, where it says so."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @contextmanager
    def speaking(self, adapter: str | None, merged: bool = False) -> Iterator[Any]:
        """The model with ``adapter`` active, or with none: then it is the pre-trained model to the bit.

        ``merged``: a copy with the adapter added into its weights, which is kept for as long as the adapter.
        """
        from peft import PeftModel

        if adapter is None:
            if isinstance(self.model, PeftModel):
                with self.model.disable_adapter():
                    yield self.model
            else:
                yield self.model
            return
        if self._attached != adapter:
            self._attach(adapter)
        yield self._merged if merged else self.model

    def fresh_adapter(self, config: "LoraConfig", seed: int) -> "PeftModel":
        """The model with a new adapter in the slot, initialised from ``seed`` alone and ready to be trained."""
        import torch
        from peft import get_peft_model

        self._detach()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.model = get_peft_model(self.model, config)
            except ValueError as error:
                raise ModelError(f"LoRA cannot be put on {self.checkpoint.name!r}: {one_line(error)}") from error
        self._attached = "(in training)"
        return self.model

    def adopt(self, adapter: str) -> None:
        """Declare that the adapter in the slot has been saved as ``adapter``: it need not be loaded again."""
        self._attached = adapter

    def check_loadable(self) -> None:
        """Raise ``ModelError`` where the checkpoint cannot be found, read or quantised. Loads no weights."""
        import torch
        from transformers.utils import is_bitsandbytes_available

        checkpoint = self.checkpoint
        if checkpoint.quantization != "none" and not is_bitsandbytes_available():
            raise ModelError(
                f"Model {checkpoint.name!r} has quantization {checkpoint.quantization!r}, which needs bitsandbytes: "
                f"pip install 'tskd[quantization]', or set `quantization: none`."
            )
        on_cpu = checkpoint.device_map == "cpu" or not torch.accelerator.is_available()
        if checkpoint.quantization == "4bit" and on_cpu:
            # There bitsandbytes 0.50 repacks the weights when they are first used: with its adapter off, a model
            # is then no longer the one that was loaded, and what it learns comes from wrong gradients.
            raise ModelError(
                f"Model {checkpoint.name!r} has quantization '4bit', which a CPU does not compute faithfully; "
                f"use a GPU, or set `quantization` to 8bit or none."
            )
        _ = self.config
        self._check_files()

    def _check_files(self) -> None:
        """That all weights are there, as safetensors and whole; read are the heads of the files alone."""
        from safetensors import SafetensorError, safe_open

        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        names = {single.name}
        if not single.is_file() and index.is_file():
            try:
                names = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ModelError(f"Model {self.checkpoint.name!r}: {index} is damaged: {one_line(error)}") from error
        for name in sorted(map(str, names)):
            file = self.folder / name
            if not file.is_file():
                pickled = ", ".join(each.name for each in self.folder.glob("*.bin"))
                instead = f" ({pickled} is not read: pickled weights can run code)" if pickled else ""
                raise ModelError(f"Model {self.checkpoint.name!r} at {self.folder} has no {name}{instead}.")
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                raise ModelError(f"Model {self.checkpoint.name!r}: {file} is damaged: {one_line(error)}") from error

    def check_adapter(self, adapter: str, same_base: bool = True) -> None:
        """Raise ``ModelError`` unless ``adapter`` fits, by name, layers and shapes. Loads no weights."""
        import torch
        from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
        from safetensors import SafetensorError, safe_open
        from transformers import AutoModelForCausalLM

        self.check_loadable()
        folder = adapter_folder(adapter)
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder / 'adapter_config.json'} is no PEFT configuration: {one_line(error)}") from error
        if getattr(config, "megatron_config", None):
            raise ModelError(
                f"Adapter {adapter} is for Megatron layers, and PEFT would import {config.megatron_core!r} for them; "
                f"only adapters of transformers' layers can be used."
            )
        made_for = config.base_model_name_or_path or "(unknown)"
        known_as = {self.checkpoint.name, _last(self.checkpoint.path), _last(getattr(self.config, "_name_or_path", ""))}
        if same_base and _last(made_for) not in {name.casefold() for name in map(_last, known_as)}:
            raise ModelError(
                f"Adapter {adapter} was made for {made_for}, not for {self.checkpoint.name!r} "
                f"({self.checkpoint.path}). Choose the right `base`, or set `teacher.same_base=false` if they are one."
            )
        with torch.device("meta"):
            bare = AutoModelForCausalLM.from_config(self.config)
            try:
                expected = get_peft_model_state_dict(get_peft_model(bare, config), save_embedding_layers=False)
            except ValueError as error:
                raise ModelError(
                    f"Adapter {adapter} does not fit {self.checkpoint.name!r}: {one_line(error)}"
                ) from error
        try:
            with safe_open(folder / "adapter_model.safetensors", "pt") as file:
                keys = [key for key in file.keys() if "lora_" in key]  # noqa: SIM118 (not a dict)
                found = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
        except SafetensorError as error:
            raise ModelError(f"{folder / 'adapter_model.safetensors'} is damaged: {one_line(error)}") from error
        wanted = {key: tuple(value.shape) for key, value in expected.items() if "lora_" in key}
        if found != wanted:
            raise ModelError(
                f"Adapter {adapter}, made for {made_for}, does not fit {self.checkpoint.name!r} "
                f"({self.checkpoint.path}): {_first_difference(found, wanted)}."
            )
        # PEFT writes `all-linear` out as full names, so an adapter of a shallower model fits a deeper one by name.
        layers = {int(number) for key in found for number in re.findall(r"\.(\d+)\.", key)[:1]}
        depth = self.config.get_text_config().num_hidden_layers
        if same_base and config.layers_to_transform is None and layers and max(layers) + 1 != depth:
            raise ModelError(
                f"Adapter {adapter}, made for {made_for}, changes {max(layers) + 1} layers, and "
                f"{self.checkpoint.name!r} ({self.checkpoint.path}) has {depth}; choose the base that it was made for."
            )

    def release(self) -> None:
        """Forget the loaded model, so that its memory can be used again; it is loaded anew when next needed."""
        self.__dict__.pop("model", None)
        self.__dict__.pop("_merged", None)
        self._attached = None
        free_memory()

    def _quantization(self) -> "BitsAndBytesConfig | None":
        if self.checkpoint.quantization == "none":
            return None
        from transformers import BitsAndBytesConfig

        if self.checkpoint.quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        # As in QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3), and computed in the model's own data type.
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
        )

    def _attach(self, adapter: str) -> None:
        import torch
        from peft import PeftModel

        self._detach()
        folder = str(adapter_folder(adapter))
        with torch.inference_mode(False):  # for the reason given where the model is loaded
            self.model = PeftModel.from_pretrained(self.model, folder).eval()
        self._attached = adapter

    @cached_property
    def _merged(self) -> Any:
        from peft.tuners.lora import LoraLayer
        from torch import nn

        # In the model itself this could not be undone: in bf16, what is added and subtracted again leaves a trace.
        model = copy.deepcopy(self.model)
        model.get_base_model().config.tie_word_embeddings = False
        for layer in model.modules():
            if isinstance(layer, LoraLayer):  # its weight may be that of another layer too: head and embedding
                layer.get_base_layer().weight = nn.Parameter(layer.get_base_layer().weight.clone(), requires_grad=False)
        return model.merge_and_unload()

    def _detach(self) -> None:
        from peft import PeftModel

        self.__dict__.pop("_merged", None)
        if isinstance(self.model, PeftModel):
            self.model = self.model.unload()
        self._attached = None


@dataclass(frozen=True)
class LanguageModel:
    """One of base, teacher, target and tuned target: weights, and the adapter that speaks."""

    weights: Weights
    adapter: str | None = None

    def key_content(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "adapter": None if self.adapter is None else hash_adapter(adapter_folder(self.adapter)),
        }

    @property
    def name(self) -> str:
        return self.weights.checkpoint.name

    @property
    def tokenizer(self) -> Any:
        return self.weights.tokenizer

    @property
    def template(self) -> Template:
        return self.weights.template

    @property
    def end_tokens(self) -> frozenset[int]:
        """All tokens that end what this model writes."""
        named = self.weights.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        ends = {self.template.end_token(), self.tokenizer.eos_token_id, *named}
        return frozenset(token for token in ends if token is not None)

    @property
    def start_token(self) -> int:
        """The token before free text: the tokenizer's start token, or its end token where it has none."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    @property
    def pad_token(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def speaking(self, merged: bool = False) -> AbstractContextManager[Any]:
        return self.weights.speaking(self.adapter, merged)


_shared: dict[tuple[Any, ...], Weights] = {}


def weights_of(checkpoint: Checkpoint) -> Weights:
    """The weights of ``checkpoint``: the same object for all who ask, so that they are loaded once in a process."""
    folder = Path(checkpoint.path).expanduser()
    states = [(file.name, file.stat()) for file in sorted(folder.iterdir())] if folder.is_dir() else []
    key = (checkpoint, *((name, state.st_size, state.st_mtime_ns) for name, state in states))
    return _shared.setdefault(key, Weights(checkpoint))


def keep_only(needed: Collection[Weights]) -> None:
    """Release all weights but those that are ``needed``."""
    for key, weights in list(_shared.items()):
        if weights not in needed:
            _shared.pop(key).release()


def _first_difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    for key in sorted(found.keys() | wanted.keys()):
        if key not in found:
            missing = len(wanted.keys() - found.keys())
            return f"it has nothing for {missing} of the model's {len(wanted)} LoRA matrices, {key} first"
        if key not in wanted:
            return f"the model has no place for its {key}"
        if found[key] != wanted[key]:
            return f"{key} has shape {list(found[key])}, the model needs {list(wanted[key])}"
    return "they are the same"


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1].casefold()
