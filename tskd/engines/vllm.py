"""vLLM in this process: its own weights in its own memory, with the adapter of each call on top."""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pydantic import PositiveFloat, PositiveInt

from tskd.errors import ConfigError, ModelError, one_line
from tskd.models.checkpoint import adapter_folder
from tskd.models.generation import Ending, Generation, Request, Sampling
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import interrupts, processes

_running: WeakKeyDictionary[Weights, Any] = WeakKeyDictionary()  # an LLM for each checkpoint, until its job is over


@dataclass(frozen=True)
class Vllm:
    """vLLM (Kwon et al. 2023, arXiv 2309.06180), told the token ids, the adapter and a seed for each request.

    It holds a copy of its own of each checkpoint that generates, made on the first call and kept, in
    ``gpu_memory_utilization`` of the device; what is left is for scoring and training, whose models are released
    before a copy is made and loaded again when they are needed. Its kernels round in their own way, differently for
    each composition of a batch: what is sampled follows from the request's key only as far as that goes.

    It is handed ``texts_per_call`` requests at a time, which are in the journal before the next are: as many are lost
    at most where a run is killed, and as few are written side by side.
    """

    gpu_memory_utilization: PositiveFloat = 0.3
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 64
    texts_per_call: PositiveInt = 512

    def __post_init__(self) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError("`engine=vllm` needs vLLM: pip install 'tskd[vllm]', or set `engine=own`.")
        if self.gpu_memory_utilization >= 1:
            raise ConfigError(
                f"`engine.gpu_memory_utilization` is {self.gpu_memory_utilization}; give a share of the GPU, below 1."
            )
        if processes.count() > 1:
            raise ConfigError(
                f"`engine=vllm` runs in one process, and there are {processes.count()}; set `engine=own`, or start one."
            )

    def check(self, models: Sequence[LanguageModel], rank: int) -> None:
        from peft import PeftConfig

        ranks = {"the adapter to be trained": rank}
        for model in models:
            checkpoint = model.weights.checkpoint
            if checkpoint.is_placed:
                raise ConfigError(
                    f"`engine=vllm` cannot share how {model.name!r} is loaded; set its `quantization` to none and its "
                    f"`device_map` to null, or `engine=own`."
                )
            if model.adapter is not None:
                adapter: Any = PeftConfig.from_pretrained(str(adapter_folder(model.adapter)))
                if getattr(adapter, "use_dora", False):
                    raise ConfigError(f"`engine=vllm` knows no DoRA, and {model.adapter} is one; set `engine=own`.")
                ranks[model.adapter] = adapter.r
        for name, found in ranks.items():
            if found > self.max_lora_rank:
                raise ConfigError(
                    f"`engine.max_lora_rank` is {self.max_lora_rank}, and the rank of {name} is {found}; raise it."
                )

    def generate(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        sampling: Sampling,
        trainer: LightningTrainer,
        *,
        stop: tuple[str, ...],
        label: str,
    ) -> list[Generation]:
        """Raises ``ModelError`` where vLLM cannot load the model or the adapter, or has no room for a request."""
        found, note = trainer.recall([self, model, repr(requests), sampling, stop])
        made = {i: Generation(*each) for i, each in found.items()}
        left = iter([i for i in range(len(requests)) if i not in made])
        while part := list(islice(left, self.texts_per_call)):
            interrupts.check()
            written = self._written(model, [requests[i] for i in part], sampling, Ending(model, stop), trainer)
            made |= (new := dict(zip(part, written, strict=True)))
            note(new)
        return [made[i] for i in range(len(requests))]

    def _written(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        sampling: Sampling,
        ending: Ending,
        trainer: LightningTrainer,
    ) -> list[Generation]:
        try:
            outputs = self._llm(model.weights).generate(
                [{"prompt_token_ids": list(request.ids)} for request in requests],
                [_sampling_params(request, sampling, ending) for request in requests],
                lora_request=None if model.adapter is None else _lora_request(model.adapter),
                use_tqdm=trainer.shows_progress,
            )
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            raise ModelError(
                f"vLLM with {model.name!r}: {one_line(error)}; see `engine.gpu_memory_utilization` where it is the "
                f"memory, or set `engine=own`."
            ) from error
        return [ending.cut(output.outputs[0].token_ids) for output in outputs]

    def _llm(self, weights: Weights) -> Any:
        if weights not in _running:
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell its makers that it was used
            from vllm import LLM

            for loaded in [each for each in Weights.alive if each.is_loaded]:
                loaded.release()
            _running[weights] = LLM(
                str(weights.folder),
                dtype=weights.checkpoint.dtype,
                gpu_memory_utilization=self.gpu_memory_utilization,
                max_model_len=-1,  # as much of the model's context as its cache has room for
                enable_lora=True,
                max_lora_rank=self.max_lora_rank,
            )
        return _running[weights]


def _sampling_params(request: Request, sampling: Sampling, ending: Ending) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=_number(request.key),
        stop=list(ending.stop),
        stop_token_ids=sorted(ending.tokens),
    )


def _lora_request(adapter: str) -> Any:
    from vllm.lora.request import LoRARequest

    folder = adapter_folder(adapter)
    state = (folder / "adapter_model.safetensors").stat()
    # vLLM keeps adapters by this number; another one in the same folder must not be taken for the first.
    number = _number(f"{folder.absolute()} {state.st_size} {state.st_mtime_ns}") + 1
    return LoRARequest(str(number), number, str(folder.absolute()))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") // 2
