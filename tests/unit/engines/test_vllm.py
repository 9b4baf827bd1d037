"""What vLLM is asked for, by a stand-in that takes its arguments and no others; see the class for where it was run."""

import importlib.machinery
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import pytest

from tests import tiny
from tskd.engines import vllm
from tskd.engines.own import generate
from tskd.engines.vllm import Vllm
from tskd.errors import ConfigError, ModelError
from tskd.models.checkpoint import Checkpoint
from tskd.models.generation import Generation, Request, Sampling
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.resume import ResumableTrainer
from tskd.runtime import processes
from tskd.storage.journal import Journal


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: list[str]
    stop_token_ids: list[int]


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class LLM:
    model: str
    dtype: str
    gpu_memory_utilization: float
    max_model_len: int
    enable_lora: bool
    max_lora_rank: int
    calls: list = field(default_factory=list)
    made = ()

    def __post_init__(self):
        LLM.made += (self,)

    def generate(self, prompts, sampling_params, *, lora_request, use_tqdm):
        """Writes back what it read."""
        self.calls.append((sampling_params, lora_request))
        told = [prompt["prompt_token_ids"] for prompt in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in told]


@pytest.fixture
def stand_in(monkeypatch):
    for name, parts in {"vllm": (LLM, SamplingParams), "vllm.lora": (), "vllm.lora.request": (LoRARequest,)}.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update({part.__name__: part for part in parts})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "made", ())
    vllm._running.clear()
    return LLM


@pytest.fixture
def by_vllm(stand_in, trainer):
    return trainer, Vllm()


def ids(model, text):
    return tuple(model.tokenizer(text, add_special_tokens=False).input_ids)


def test_without_vllm_it_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"`engine=vllm` needs vLLM: pip install 'tskd\[vllm\]'"):
        Vllm()


def test_texts_are_cut_at_the_first_end_in_the_order_of_the_requests(llama, by_vllm):
    model = LanguageModel(tiny.weights(llama))
    end = (model.tokenizer.eos_token_id,)
    requests = [Request(ids(model, "one two")), Request((*ids(model, "on"), *end)), Request(ids(model, "e"))]
    made = generate(model, requests, Sampling(9), *by_vllm, stop=(" t",))
    assert made == [Generation("one", True, 5), Generation("on", True, 3), Generation("e", False, 1)]
    assert not model.weights.is_loaded


def test_each_request_has_a_seed_that_follows_from_its_key(llama, by_vllm, stand_in):
    model = LanguageModel(tiny.weights(llama))
    generate(model, [Request((5,), key) for key in "aab"], Sampling(9, 0.7, 0.9), *by_vllm)
    (params, lora), *_ = stand_in.made[0].calls
    assert params[0] == params[1]
    assert params[0] == replace(params[2], seed=params[0].seed)
    assert params[0].seed != params[2].seed
    assert (9, 0.7, 0.9, [model.tokenizer.eos_token_id]) == (
        *(params[0].max_tokens, params[0].temperature, params[0].top_p, params[0].stop_token_ids),
    )
    assert lora is None


def test_a_checkpoint_is_loaded_once_and_makes_room_and_adapters_go_with_the_call(
    llama, adapter, by_vllm, stand_in, tmp_path
):
    weights, other = tiny.weights(llama), tiny.weights(llama)
    assert other.model is not None
    adapters = [str(adapter), str(tiny.save_adapter(llama, tmp_path, seed=9)), str(adapter)]
    for each in (None, *adapters):
        generate(LanguageModel(weights, each), [Request((5,))], Sampling(9), *by_vllm)
    tiny.save_adapter(llama, tmp_path, seed=10)
    generate(LanguageModel(weights, adapters[1]), [Request((5,))], Sampling(9), *by_vllm)
    (llm,) = stand_in.made
    assert not other.is_loaded
    assert (str(llama), "float32", 0.3, -1, True, 64) == (
        *(llm.model, llm.dtype, llm.gpu_memory_utilization, llm.max_model_len, llm.enable_lora, llm.max_lora_rank),
    )
    first, second, again, remade = (lora for _, lora in llm.calls[1:])
    assert first == again
    assert len({first.lora_int_id, second.lora_int_id, remade.lora_int_id}) == 3  # vLLM keeps them by this number
    assert second.lora_path == remade.lora_path


def test_its_copy_goes_with_the_weights(llama, by_vllm):
    weights = tiny.weights(llama)
    generate(LanguageModel(weights), [Request((5,))], Sampling(9), *by_vllm)
    assert len(vllm._running) == 1
    del weights
    assert len(vllm._running) == 0


def test_a_call_that_was_broken_off_goes_on_after_the_last_texts_that_were_noted(llama, by_vllm, tmp_path, monkeypatch):
    model, requests = LanguageModel(tiny.weights(llama)), [Request((5, each)) for each in range(6, 13)]
    whole = generate(model, requests, Sampling(9), *by_vllm)
    noting = ResumableTrainer("cpu", progress=False, journal=Journal(tmp_path)), Vllm(texts_per_call=3)
    real, sizes = LLM.generate, []

    def killed_in_the_third_call(self, prompts, *rest, **named):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(prompts))
        return real(self, prompts, *rest, **named)

    monkeypatch.setattr(LLM, "generate", killed_in_the_third_call)
    with pytest.raises(KeyboardInterrupt):
        generate(model, requests, Sampling(9), *noting)
    assert [3, 3] == sizes
    sizes.clear()
    assert whole == generate(model, requests, Sampling(9), *noting)
    assert [1] == sizes
    assert whole == generate(model, requests, Sampling(9), *noting)
    assert [1] == sizes


def test_what_vllm_says_is_one_line(llama, by_vllm, monkeypatch):
    def fail(*_, **__):
        raise ValueError("Free memory\nis less than desired")

    monkeypatch.setattr(LLM, "__init__", fail)
    with pytest.raises(ModelError, match="Free memory is less than desired; see `engine.gpu_memory_utilization`"):
        generate(LanguageModel(tiny.weights(llama)), [Request((5,))], Sampling(9), *by_vllm)


@pytest.mark.parametrize(
    ("settings", "rank", "said"),
    [
        ({"quantization": "8bit"}, 16, "cannot share how 'm' is loaded"),
        ({"device_map": "auto"}, 16, "cannot share how 'm' is loaded"),
        ({}, 65, "`engine.max_lora_rank` is 64, and the rank of the adapter to be trained is 65"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_loads(stand_in, settings, rank, said):
    with pytest.raises(ConfigError, match=said):
        Vllm().check([LanguageModel(Weights(Checkpoint("m", "nowhere", **settings)))], rank)


def test_an_adapter_of_too_high_a_rank_is_refused(llama, stand_in, tmp_path):
    adapter = str(tiny.save_adapter(llama, tmp_path, rank=12))
    with pytest.raises(ConfigError, match="`engine.max_lora_rank` is 8, and the rank of .* is 12; raise it"):
        Vllm(max_lora_rank=8).check([LanguageModel(tiny.weights(llama), adapter)], 4)
    Vllm(max_lora_rank=16).check([LanguageModel(tiny.weights(llama), adapter)], 4)


def test_several_processes_and_the_whole_device_are_refused(stand_in, monkeypatch):
    with pytest.raises(ConfigError, match="`engine.gpu_memory_utilization` is 1.0"):
        Vllm(gpu_memory_utilization=1.0)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ConfigError, match="`engine=vllm` runs in one process, and there are 2"):
        Vllm()
