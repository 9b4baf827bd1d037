"""What holds for one architecture holds for the others: sliding windows, scaled and capped heads, chosen modules."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests import scripted, tiny
from tskd.engines.own import generate
from tskd.errors import ModelError
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_response
from tskd.models.generation import Request, Sampling
from tskd.models.logprobs import token_nll
from tskd.models.networks import fused_nll, hidden_states, vocabulary_head
from tskd.models.weights import LanguageModel, Weights
from tskd.modules import generator
from tskd.modules.finetuner import finetune
from tskd.modules.lora import LoraSettings
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt

TOKENIZER = tiny.byte_tokenizer("<s>", scripted.END)
SMALL = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
    "initializer_range": 0.3,
}
GEMMA = {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**GEMMA, "final_logit_softcapping": 5.0}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    model_class, config_class, settings = KINDS[request.param]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / request.param
    model_class(config_class(**SMALL, **settings)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def weights_of(folder):
    # transformers has no other attention for Gemma 2, whose scores are capped.
    attention = "eager" if folder.name == "gemma2" else "sdpa"
    return Weights(Checkpoint(folder.name, str(folder), dtype="float32", attention=attention))


def test_every_architecture_loads_without_being_told_how(folder):
    assert not tiny.weights(folder).model.training


def test_decoder_and_head_give_the_models_own_logits(folder):
    model = weights_of(folder).model
    ids = torch.randint(2, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    logits = vocabulary_head(model, hidden_states(model, ids, mask).flatten(0, 1))
    torch.testing.assert_close(logits, model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1))


def plain_and_fused(folder, device="cpu"):
    """The nlls of one text by the logits and by the kernel, and the gradients of hidden states that they give."""
    model = Weights(Checkpoint(folder.name, str(folder), dtype="bfloat16", attention="eager")).model.to(device)
    ids = torch.randint(2, 200, (1, 40), generator=torch.Generator().manual_seed(0)).to(device)
    hidden = hidden_states(model, ids, torch.ones_like(ids))[0, :-1]
    weights = torch.linspace(0, 1, len(hidden), device=device)  # of tokens, which an objective may give
    for nll in (lambda h, y: token_nll(h, y, lambda part: vocabulary_head(model, part)), partial(fused_nll, model)):
        leaf = hidden.detach().clone().requires_grad_()
        values = nll(leaf, ids[0, 1:])
        (values * weights).sum().backward()
        yield values.detach(), leaf.grad.float()


def assert_alike(plain, fused):
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.05)


def test_the_kernel_is_given_what_the_head_computes(folder, monkeypatch):
    def linear_cross_entropy(e, c, targets, *, softcap, reduction, filter_eps):  # as in cut_cross_entropy 25.1.1
        logits = (e @ c.T).float()
        logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
        return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)

    module = SimpleNamespace(linear_cross_entropy=linear_cross_entropy)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", module)
    assert_alike(*plain_and_fused(folder))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs CUDA")
def test_the_kernel_gives_the_nll_and_the_gradient_of_the_logits(folder):
    pytest.importorskip("cut_cross_entropy")
    assert_alike(*plain_and_fused(folder, "cuda"))


def test_a_head_in_32_bits_is_refused_by_the_kernel(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", SimpleNamespace(linear_cross_entropy=None))
    with pytest.raises(ModelError, match=r"has a bias, an adapter or torch.float32 weights.*fused_loss=false"):
        fused_nll(weights_of(folder).model, torch.zeros(1, 32), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_and_neighbours_change_no_text(folder, temperature):
    model = LanguageModel(weights_of(folder))
    requests = [Request(tuple(range(2, 2 + n)), str(n)) for n in (1, 3, 6, 12, 24)]

    def written(max_batch_tokens):
        trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
        return generate(model, requests, Sampling(14, temperature), trainer)

    assert written(1) == written(8192)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_read_apart_and_written_together_is_as_if_alone(folder, temperature, monkeypatch):
    model = LanguageModel(weights_of(folder))
    requests = [Request(tuple(range(2, 2 + n)), key) for n, key in ((3, "a"), (24, "b"), (1, "c"), (24, "d"), (6, "e"))]
    alone = [generate(model, [each], Sampling(14, temperature), LightningTrainer("cpu"))[0] for each in requests]
    shapes = []
    passed = generator._next_logits
    monkeypatch.setattr(generator, "_next_logits", lambda *args: shapes.append(tuple(args[1].shape)) or passed(*args))
    monkeypatch.setattr(LightningTrainer, "pass_cost", lambda *_: 4)
    assert alone == generate(model, requests, Sampling(14, temperature), LightningTrainer("cpu"))
    assert [(1, 24), (2, 6), (1, 1), (5, 1)] == shapes[:4]


def test_greedy_text_is_that_of_transformers(folder, trainer):
    model = LanguageModel(weights_of(folder))
    ids = torch.arange(40, 52)[None]
    mine = generate(model, [Request(tuple(ids[0].tolist()))], Sampling(12), trainer)[0]
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=model.weights.checkpoint.attention)
    theirs = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 12:]
    assert model.tokenizer.decode(theirs, skip_special_tokens=True).strip() == mine.text


@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids=str)
def test_an_adapter_on_any_modules_is_saved_whole(modules, llama, tmp_path, trainer):
    weights = tiny.weights(llama)
    examples = [encode_response(LanguageModel(weights), Prompt("q"), "a", finished=True)]
    lora = LoraSettings(rank=2, epochs=3, learning_rate=1e-2, target_modules=modules)
    finetune(weights, examples, lora, trainer, tmp_path, seed=0, key="k")
    ids = torch.arange(2, 30)[None]
    with weights.speaking(str(tmp_path)) as model:
        expected = model(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path).eval()
    torch.testing.assert_close(expected, loaded(input_ids=ids).logits)


@pytest.mark.parametrize("embeddings", [False, "auto"])
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "lm_head"]], ids=str)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT's own word on what is asked of it here
def test_an_adapter_on_any_modules_that_peft_saved_is_accepted(modules, embeddings, llama, tmp_path):
    network = tiny.weights(llama).fresh_adapter(LoraSettings(rank=2, target_modules=modules).lora_config(), seed=0)
    network.save_pretrained(tmp_path, save_embedding_layers=embeddings)
    tiny.weights(llama).check_adapter(str(tmp_path))
