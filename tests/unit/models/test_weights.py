"""Loading checkpoints and adapters, and the errors that say why one cannot be used."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.errors import ModelError
from tskd.models.checkpoint import Checkpoint, adapter_folder
from tskd.models.probes import same_tokenizer
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.lora import LoraSettings

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


def test_weights_that_were_first_needed_in_inference_mode_can_be_trained_beside(llama):
    weights = tiny.weights(llama)
    with torch.inference_mode():
        assert weights.model is not None
    network = weights.fresh_adapter(LoraSettings(rank=2).lora_config(), seed=0)
    network(input_ids=IDS, labels=IDS).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())


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


def from_the_hub(monkeypatch, kind, **facts):
    """What is said of a model for which the hub's answer is an error of this kind."""

    def answer(*_, **__):
        raise kind("40x Client Error.\n\nCannot access it.", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    with pytest.raises(ModelError) as error:
        _ = Weights(Checkpoint("m", "owner/name", **facts)).folder
    assert "\n" not in str(error.value)
    return str(error.value)


GATED = r"model 'm' owner/name is gated: accept its licence on the hub, then `hf auth login`; or give a folder"


def test_a_model_that_the_hub_calls_gated_says_how_to_get_it(monkeypatch):
    assert re.match(GATED, from_the_hub(monkeypatch, GatedRepoError))


def test_a_model_known_to_be_gated_says_so_where_the_hub_does_not(monkeypatch):
    assert re.match(GATED, from_the_hub(monkeypatch, RepositoryNotFoundError, gated=True))
    assert "gated" not in from_the_hub(monkeypatch, RepositoryNotFoundError)


def test_a_model_known_to_be_gated_says_so_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no-one/no-such-model is gated: .*HF_HUB_OFFLINE"):
        _ = Weights(Checkpoint("m", "no-one/no-such-model", gated=True)).folder


def test_a_revision_that_belongs_to_another_model_is_named(monkeypatch):
    said = from_the_hub(monkeypatch, RevisionNotFoundError, revision="abc", gated=True)
    assert said == "model 'm' owner/name has no revision abc; give one that it has, or null for the newest."


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "newest"])
def test_a_model_from_the_hub_knows_its_commit(monkeypatch, llama, tmp_path, pinned):
    commit = "0123456789abcdef" * 2 + "01234567"
    cache = tmp_path / "models--owner--name"
    shutil.copytree(llama, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = Weights(Checkpoint("m", "owner/name", revision=commit if pinned else None))
    assert (commit, "llama") == (weights.resolved_revision, weights.config.model_type)


def test_a_folder_has_no_commit(llama):
    assert tiny.weights(llama).resolved_revision is None


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_model_without_bitsandbytes_names_the_extra_before_anything_loads(
    monkeypatch, llama, adapter, quantization
):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    weights = Weights(Checkpoint("m", str(llama), quantization=quantization))
    for check in (weights.check_loadable, lambda: weights.check_adapter(str(adapter)), lambda: weights.model):
        with pytest.raises(ModelError, match=rf"quantization '{quantization}'.*pip install 'tskd\[quantization\]'"):
            check()
    assert {"config", "model"}.isdisjoint(weights.__dict__)


def test_four_bits_are_refused_on_a_cpu(monkeypatch, llama):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: True)
    with pytest.raises(ModelError, match="'4bit', which a CPU does not compute faithfully; use a GPU, or set"):
        Weights(Checkpoint("m", str(llama), quantization="4bit", device_map="cpu")).check_loadable()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_model_takes_an_adapter_and_is_itself_again_without_it(llama, adapter, quantization):
    pytest.importorskip("bitsandbytes")
    if quantization == "4bit" and not torch.accelerator.is_available():
        pytest.skip("refused on a CPU")
    weights = Weights(Checkpoint("m", str(llama), dtype="bfloat16", quantization=quantization))
    ids = IDS.to(weights.model.device)

    def said(adapter=None):
        with torch.inference_mode(), weights.speaking(adapter and str(adapter)) as model:
            return model(input_ids=ids).logits

    before, taught, after = said(), said(adapter), said()
    assert torch.equal(before, after)
    assert not torch.allclose(before, taught)


def test_a_model_that_transformers_places_says_the_same(llama, adapter):
    placed = Weights(Checkpoint("m", str(llama), dtype="float32", device_map="cpu"))
    assert torch.equal(logits(tiny.weights(llama)), logits(placed))
    assert torch.equal(logits(tiny.weights(llama), adapter), logits(placed, adapter))


@pytest.mark.parametrize(
    ("facts", "expected"), [({}, False), ({"device_map": "cpu"}, True), ({"quantization": "8bit"}, True)], ids=str
)
def test_a_model_is_placed_where_transformers_puts_it_on_its_devices(facts, expected):
    assert expected == Checkpoint("m", "p", **facts).is_placed


def test_copies_of_a_model_share_their_tokenizer_whatever_their_weights(llama, tmp_path):
    one, other = tiny.weights(llama), tiny.weights(tiny.save_model(tmp_path / "m", seed=3, width=16))
    assert same_tokenizer(one, one)
    assert same_tokenizer(one, other)
    assert "model" not in one.__dict__


def merge_some_letters(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"] |= {"th": size, "he": size + 1}
    content["model"]["merges"] = [["t", "h"], ["h", "e"]]
    file.write_text(json.dumps(content))
    return content


def in_another_order(folder):
    content = merge_some_letters(folder)
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content))


def without_a_start_token(folder):
    file = folder / "tokenizer.json"
    content = merge_some_letters(folder)
    file.write_text(json.dumps(content | {"post_processor": None}))


def with_a_token_more(folder):
    merge_some_letters(folder)
    tokenizer = tiny.weights(folder).tokenizer
    tokenizer.add_tokens(["<|turn|>"])
    tokenizer.save_pretrained(folder)


def with_a_token_that_is_never_split(folder):
    merge_some_letters(folder)
    tokenizer = tiny.weights(folder).tokenizer
    tokenizer.add_tokens(["th"])  # in the vocabulary already, so it keeps its id
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "change", [in_another_order, without_a_start_token, with_a_token_more, with_a_token_that_is_never_split]
)
def test_tokenizers_that_cut_a_text_differently_are_not_the_same(llama, tmp_path, change):
    for name in ("one", "other"):
        shutil.copytree(llama, tmp_path / name)
    merge_some_letters(tmp_path / "one")
    change(tmp_path / "other")
    assert not same_tokenizer(tiny.weights(tmp_path / "one"), tiny.weights(tmp_path / "other"))


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
    model.weights.generation_config.eos_token_id = [5, 7]
    assert {5, 7, model.tokenizer.eos_token_id} == model.end_tokens
