"""A merged copy says what the adapter says, and the model that it was copied from is none the wiser."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.engines.own import OwnLoop, generate
from tskd.errors import ConfigError
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.lora import LoraSettings

IDS = torch.arange(2, 30)[None]


def logits(weights, adapter, merged=False):
    with torch.inference_mode(), weights.speaking(adapter and str(adapter), merged) as model:
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_and_teacher_are_the_same_to_the_bit_after_a_copy_was_merged(llama, adapter, dtype):
    weights = Weights(Checkpoint("m", str(llama), dtype=dtype))
    parameters = {name: p.clone() for name, p in weights.model.named_parameters()}
    base, teacher = logits(weights, None), logits(weights, adapter)
    merged = logits(weights, adapter, merged=True)
    assert not torch.equal(base, merged)
    assert torch.equal(base, logits(weights, None))
    assert torch.equal(teacher, logits(weights, adapter))
    weights._detach()
    assert all(torch.equal(parameters[name], p) for name, p in weights.model.named_parameters())


def test_in_fp32_it_says_what_the_adapter_says(llama, adapter, trainer):
    weights = tiny.weights(llama)
    torch.testing.assert_close(logits(weights, adapter), logits(weights, adapter, merged=True), atol=1e-4, rtol=1e-4)
    model = LanguageModel(weights, str(adapter))
    requests = [Request(encode_prefix(model, text), text) for text in ("a", "some words", "x" * 30)]
    merging = OwnLoop(merge_adapter=True)
    for sampling in (Sampling(12), Sampling(12, temperature=1.0)):
        assert generate(model, requests, sampling, trainer) == generate(model, requests, sampling, trainer, merging)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # what is tested here
def test_a_head_that_shares_its_weight_with_the_embedding_is_merged_alone(tmp_path):
    base = tiny.save_model(tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(base)
    network.config.tie_word_embeddings = True
    network.tie_weights()
    network.save_pretrained(base)
    adapted = get_peft_model(network, LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    weights = tiny.weights(base)
    head, embedding = weights.model.get_output_embeddings(), weights.model.get_input_embeddings()
    assert head.weight is embedding.weight
    expected = logits(weights, tmp_path / "adapter")
    torch.testing.assert_close(expected, logits(weights, tmp_path / "adapter", merged=True), atol=1e-4, rtol=1e-4)


def test_it_is_made_once_and_goes_with_its_adapter(llama, adapter, tmp_path):
    weights = tiny.weights(llama)
    with weights.speaking(str(adapter)):
        assert "_merged" not in weights.__dict__
    with weights.speaking(str(adapter), merged=True) as first:
        pass
    with weights.speaking(None), weights.speaking(str(adapter), merged=True) as again:
        assert first is again
    with weights.speaking(str(tiny.save_adapter(llama, tmp_path, seed=9)), merged=True) as other:
        assert other is not first
    weights.fresh_adapter(LoraSettings(rank=2).lora_config(), seed=0)
    assert "_merged" not in weights.__dict__


def test_without_an_adapter_there_is_nothing_to_merge(llama):
    weights = tiny.weights(llama)
    with weights.speaking(None, merged=True) as model:
        assert model is weights.model


@pytest.mark.parametrize("settings", [{"quantization": "8bit"}, {"device_map": "auto"}])
def test_what_cannot_be_copied_is_refused_before_anything_loads(settings):
    weights = Weights(Checkpoint("m", "nowhere", **settings))
    with pytest.raises(ConfigError, match="`engine.merge_adapter` cannot copy 'm'"):
        OwnLoop(merge_adapter=True).check([LanguageModel(weights)], 16)
    OwnLoop().check([LanguageModel(weights)], 16)
