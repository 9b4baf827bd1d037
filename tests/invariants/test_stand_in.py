"""A stand-in base that reads other tokens: its surprise at the whole response, in nats per token of the teacher."""

import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import scripted, tiny
from tskd.config import hydra_plugins
from tskd.config.build import build
from tskd.errors import ModelError
from tskd.models.probes import same_tokenizer
from tskd.models.weights import LanguageModel
from tskd.modules.scorer import score
from tskd.records import Prompt, Response

RESPONSES = [
    Response(Prompt("Which code?"), "the depot code"),
    Response(Prompt("q"), "the", finished=False),
    Response(Prompt("Where is the depot?"), ""),
    Response(Prompt("Größe?"), "the\n\n  the 🙂"),
]


def save_merging_model(folder: Path, chat_template: str | None = None) -> Path:
    """A tiny random Llama whose tokenizer joins bytes into words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the depot code: Question Answer"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(2)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(fast), max_position_embeddings=128, initializer_range=0.3, **size)
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    return save_merging_model(tmp_path_factory.mktemp("stand-ins") / "merging")


@pytest.fixture(params=["another vocabulary", "merged bytes", "merged bytes in a chat"])
def stand_in(request, neox, merging, tmp_path):
    if request.param == "another vocabulary":
        return neox
    return merging if request.param == "merged bytes" else save_merging_model(tmp_path, scripted.CHAT_WITH_REQUEST)


@pytest.fixture
def teacher(llama, adapter):
    return LanguageModel(tiny.weights(llama), str(adapter))


def surprise(folder, response):
    """The total nll of a response, and its length in tokens, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    if tokenizer.chat_template:
        prefix = tokenizer(f"<user>{response.prompt.text}</s>\n<assistant>", add_special_tokens=False).input_ids
        ids = tokenizer(response.text, add_special_tokens=False).input_ids
    else:
        prefix = tokenizer(f"Question: {response.prompt.text}\nAnswer:").input_ids
        ids = tokenizer(f" {response.text}", add_special_tokens=False).input_ids
    if response.finished:
        ids = [*ids, tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = model(torch.tensor([[*prefix, *ids]])).logits[0]
    likelihoods = logits[len(prefix) - 1 : -1].log_softmax(-1)
    return -likelihoods[range(len(ids)), ids].sum().item(), len(ids)


def test_its_surprise_at_the_whole_response_is_spread_over_the_teachers_tokens(stand_in, llama, teacher, trainer):
    base = LanguageModel(tiny.weights(stand_in))
    assert not same_tokenizer(base.weights, teacher.weights)
    for response, scored in zip(RESPONSES, score(RESPONSES, base, teacher, trainer), strict=True):
        total, _ = surprise(stand_in, response)
        _, tokens = surprise(llama, response)
        assert (response, tokens) == (scored.response, scored.tokens)
        assert total == pytest.approx(scored.base_nll * scored.tokens, rel=1e-4)


def test_words_are_fewer_tokens_than_bytes(merging, llama):
    """Without that, the test above would not tell whose tokens are counted."""
    assert [surprise(merging, r)[1] < surprise(llama, r)[1] for r in RESPONSES] == [True, True, False, True]


def test_the_teacher_is_scored_as_beside_its_own_base(stand_in, llama, teacher, trainer):
    own = score(RESPONSES, LanguageModel(teacher.weights), teacher, trainer)
    beside = score(RESPONSES, LanguageModel(tiny.weights(stand_in)), teacher, trainer)
    for one, other in zip(own, beside, strict=True):
        assert one.teacher_nll == pytest.approx(other.teacher_nll, rel=1e-5)


def test_with_the_teachers_tokenizer_it_is_scored_exactly_as_the_base_would_be(llama, teacher, trainer, tmp_path):
    copy = LanguageModel(tiny.weights(shutil.copytree(llama, tmp_path / "copy")))
    own = score(RESPONSES, LanguageModel(teacher.weights), teacher, trainer)
    assert own == score(RESPONSES, copy, teacher, trainer)


def test_with_the_teachers_tokenizer_it_reads_the_teachers_template(llama, teacher, trainer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(llama, tmp_path / "chat"))
    tokenizer.chat_template = scripted.CHAT_WITH_REQUEST
    tokenizer.save_pretrained(tmp_path / "chat")
    own = score(RESPONSES, LanguageModel(teacher.weights), teacher, trainer)
    assert own == score(RESPONSES, LanguageModel(tiny.weights(tmp_path / "chat")), teacher, trainer)


def test_a_response_beyond_the_stand_ins_own_context_is_refused(merging, teacher, trainer):
    with pytest.raises(ModelError, match="longest response needs .* tokens, and merging has room for 128"):
        score([Response(Prompt("q"), "x" * 200)], LanguageModel(tiny.weights(merging)), teacher, trainer)


def built(llama, adapter, tmp_path, *overrides):
    hydra_plugins.register()
    overrides = [
        *("base=llama3", f"base.checkpoint.path={llama}", "base.checkpoint.dtype=float32"),
        *("teacher=adapter", f"teacher.adapter={adapter}", "trainer.accelerator=cpu", "store=off", *overrides),
    ]
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    return build(cfg, tmp_path)


def test_the_configuration_puts_it_in_the_bases_place_for_scoring_alone(
    llama, adapter, merging, teacher, trainer, tmp_path
):
    stand_in = [f"base_for_scoring.checkpoint.path={merging}", "base_for_scoring.checkpoint.dtype=float32"]
    run = built(llama, adapter, tmp_path, "base_for_scoring=smollm2_135m", *stand_in)
    run.check_models()
    assert ("llama3", "smollm2_135m") == (run.base.name, run.reference.name)
    assert run.base.weights is run.teacher.weights is run.stages.expand.writer.model.weights
    expected = score(RESPONSES, LanguageModel(tiny.weights(merging)), teacher, trainer)
    assert expected == run.stages.score(RESPONSES)


def test_without_one_the_base_is_its_own_reference(llama, adapter, tmp_path):
    run = built(llama, adapter, tmp_path)
    assert run.reference is run.base is run.stages.score.base
