"""Loading checkpoints and adapters, and the errors that say why one cannot be used."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.errors import ModelError
from tskd.models import Checkpoint, LanguageModel, Weights, adapter_folder
from tskd.modules.finetuner import LoraSettings

IDS = torch.arange(2, 30)[None]


def logits(weights, adapter=None):
    with torch.inference_mode(), weights.speaking(adapter and str(adapter)) as model:
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def other_adapter(llama, tmp_path_factory):
    return tiny.save_adapter(llama, tmp_path_factory.mktemp("adapters") / "other", seed=7)


def test_nothing_loads_before_it_is_used(tmp_path):
    LanguageModel(Weights(Checkpoint("m", str(tmp_path / "nowhere"))), "no-adapter-either")


def test_an_adapter_that_belongs_is_accepted(llama, adapter):
    weights = tiny.weights(llama)
    weights.check_adapter(str(adapter))
    assert "model" not in weights.__dict__  # no weights were loaded


def test_adapters_that_take_turns_leave_no_trace(llama, adapter, other_adapter):
    weights = tiny.weights(llama)
    turns = [adapter, None, other_adapter, None, adapter, other_adapter, adapter]
    said = [logits(weights, turn) for turn in turns]
    alone = {turn: logits(tiny.weights(llama), turn) for turn in {*turns}}
    assert all(torch.equal(alone[turn], heard) for turn, heard in zip(turns, said, strict=True))
    assert len({heard.sum().item() for heard in said}) == 3


def test_base_can_speak_outside_inference_mode_after_the_teacher_spoke_within(llama, adapter):
    weights = tiny.weights(llama)
    logits(weights, adapter)
    with weights.speaking(None) as model:
        assert torch.equal(logits(tiny.weights(llama)), model(input_ids=IDS).logits)


def test_released_weights_come_back_the_same(llama, adapter):
    weights = tiny.weights(llama)
    before = logits(weights, adapter), logits(weights)
    weights.release()
    assert "model" not in weights.__dict__
    assert all(torch.equal(a, b) for a, b in zip(before, (logits(weights, adapter), logits(weights)), strict=True))


def test_a_fresh_adapter_says_what_the_model_said(llama, adapter):
    weights = tiny.weights(llama)
    logits(weights, adapter)
    with torch.no_grad():
        fresh = weights.fresh_adapter(LoraSettings(rank=2).lora_config(), seed=0)(input_ids=IDS).logits
    torch.testing.assert_close(fresh, AutoModelForCausalLM.from_pretrained(llama)(input_ids=IDS).logits)


def test_only_the_fresh_adapter_is_trainable(llama):
    network = tiny.weights(llama).fresh_adapter(LoraSettings(rank=2).lora_config(), seed=0)
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in network.named_parameters())


def test_making_an_adapter_leaves_the_global_random_numbers_alone(llama):
    weights = tiny.weights(llama)
    assert weights.model is not None
    state = torch.random.get_rng_state()
    weights.fresh_adapter(LoraSettings(rank=2).lora_config(), seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def changed(adapter, folder, **config):
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(folder)


def test_an_adapter_of_another_model_is_refused_with_both_names(llama, adapter, tmp_path):
    other = changed(adapter, tmp_path / "a", base_model_name_or_path="someone/other-llama")
    with pytest.raises(
        ModelError, match=r"made for someone/other-llama, not for 'tiny-llama'.*teacher\.same_base=false"
    ):
        tiny.weights(llama).check_adapter(other)


def test_a_wrong_name_may_be_overruled(llama, adapter, tmp_path):
    other = changed(adapter, tmp_path / "a", base_model_name_or_path="someone/other-llama")
    tiny.weights(llama).check_adapter(other, same_base=False)


@pytest.mark.parametrize("name", ["someone/Tiny-LLaMA", "elsewhere/models/tiny-llama/", "tiny-llama"])
def test_a_model_is_known_by_the_last_part_of_its_path(llama, adapter, tmp_path, name):
    tiny.weights(llama).check_adapter(changed(adapter, tmp_path / "a", base_model_name_or_path=name))


def test_an_adapter_that_lacks_matrices_of_its_own_is_refused(llama, adapter, tmp_path):
    folder = changed(adapter, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if ".layers.1." not in key}, file)
    with pytest.raises(ModelError, match=r"nothing for 14 of the model's 28 LoRA matrices, .*layers\.1\."):
        tiny.weights(llama).check_adapter(folder)


def test_an_adapter_for_modules_that_the_model_lacks_is_refused(neox, adapter):
    with pytest.raises(ModelError, match="does not fit 'tiny-neox'"):
        tiny.weights(neox).check_adapter(str(adapter), same_base=False)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_folder_without_its_files_names_the_one_that_is_missing(adapter, tmp_path, file):
    folder = changed(adapter, tmp_path / "a")
    (tmp_path / "a" / file).unlink()
    with pytest.raises(ModelError, match=f"has no {file}"):
        adapter_folder(folder)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_file_that_is_only_a_pointer_is_a_model_error(llama, adapter, tmp_path, file):
    folder = changed(adapter, tmp_path / "a")
    (tmp_path / "a" / file).write_text(LFS)
    with pytest.raises(ModelError, match=re.escape(folder)):
        tiny.weights(llama).check_adapter(folder)


@pytest.mark.parametrize(
    ("file", "part"), [("config.json", "config"), ("model.safetensors", "model"), ("tokenizer.json", "tokenizer")]
)
def test_a_model_file_that_is_only_a_pointer_is_a_model_error(llama, tmp_path, file, part):
    shutil.copytree(llama, tmp_path / "m")
    (tmp_path / "m" / file).write_text(LFS)
    with pytest.raises(ModelError, match="'m'"):
        getattr(tiny.weights(tmp_path / "m"), part)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all", "zoo://nowhere", "nowhere"])
def test_a_missing_folder_is_named(path):
    with pytest.raises(ModelError, match=r"There is no folder .*nowhere.* for model 'm'"):
        _ = Weights(Checkpoint("m", path)).folder


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no-one/no-such-model is neither a folder here nor to be had") as error:
        _ = Weights(Checkpoint("m", "no-one/no-such-model")).folder
    assert "\n" not in str(error.value)


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match=r"Model 'm' at .*") as error:
        _ = tiny.weights(tmp_path / "m").config
    assert "\n" not in str(error.value)


def test_a_data_type_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ModelError, match="dtype 'int3'; use one of float32, bfloat16"):
        Checkpoint("m", "p", dtype="int3")


@pytest.mark.parametrize(("kind", "start", "pad"), [("llama", "<s>", "</s>"), ("neox", "<end>", "<end>")])
def test_start_pad_and_end_tokens_are_the_tokenizers(kind, start, pad, request):
    model = LanguageModel(tiny.weights(request.getfixturevalue(kind)))
    token = model.tokenizer.convert_tokens_to_ids
    assert (token(start), token(pad)) == (model.start_token, model.pad_token)
    assert frozenset([model.tokenizer.eos_token_id]) == model.end_tokens


def test_without_start_and_pad_tokens_the_end_token_serves(llama):
    model = LanguageModel(tiny.weights(llama))
    model.tokenizer.bos_token = model.tokenizer.pad_token = None
    assert [model.tokenizer.eos_token_id] * 2 == [model.start_token, model.pad_token]


def test_the_generation_config_may_name_more_end_tokens(llama):
    model = LanguageModel(tiny.weights(llama))
    model.weights.model.generation_config.eos_token_id = [5, 7]
    assert {5, 7, model.tokenizer.eos_token_id} == model.end_tokens
