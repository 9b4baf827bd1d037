"""Where memory runs out, work is done in smaller batches, and its results are the same."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tskd.engines.own import generate
from tskd.errors import ModelError
from tskd.models.encoding import encode_prefix, encode_response
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules import finetuner, generator, scorer
from tskd.modules.finetuner import finetune
from tskd.modules.lora import LoraSettings
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response

TEXTS = ["a", "two words", "three words here", "and a few more of them", "end"]
RESPONSES = [Response(Prompt(text), text[::-1]) for text in TEXTS]
REFUSED = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.fixture(autouse=True)
def _whatever_the_padding(monkeypatch):
    monkeypatch.setattr(LightningTrainer, "pass_cost", lambda *_: 10**6)


def out_of_memory_above(rows, patch, module, kind, error=torch.OutOfMemoryError("CUDA out of memory.")):
    """Let passes of ``module`` fail on more than ``rows`` texts; the number of texts, each time one is tried."""
    tried = []
    method = {"Generator": "compute", "Scorer": "compute", "Finetuner": "loss_of"}[kind]
    real = getattr(getattr(module, kind), method)

    def limited(self, indices, *rest):
        tried.append(len(indices))
        if len(indices) > rows:
            raise error
        return real(self, indices, *rest)

    patch.setattr(getattr(module, kind), method, limited)
    return tried


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(REFUSED)])
def test_scores_are_the_same_in_halves(llama, adapter, trainer, monkeypatch, error, caplog):
    base = LanguageModel(tiny.weights(llama))
    teacher = LanguageModel(base.weights, str(adapter))
    whole = scorer.score(RESPONSES, base, teacher, trainer)
    tried = out_of_memory_above(2, monkeypatch, scorer, "Scorer", error)
    halves = scorer.score(RESPONSES, base, teacher, trainer)
    assert tried == [5, 3, 2, 1, 2]
    assert "Out of memory in score with 5 texts; batches are cut into 2 parts from here on" in caplog.text
    assert [e.response for e in halves] == RESPONSES
    for one, other in zip(whole, halves, strict=True):
        assert (one.base_nll, one.teacher_nll) == pytest.approx((other.base_nll, other.teacher_nll), abs=1e-5)


def test_texts_are_the_same_in_halves_and_later_batches_start_smaller(llama, monkeypatch):
    model = LanguageModel(tiny.weights(llama))
    requests = [Request(encode_prefix(model, text), text) for text in TEXTS * 2]
    longest = max(len(request.ids) for request in requests) + 6
    trainer = LightningTrainer("cpu", progress=False, max_batch_tokens=4 * longest)
    whole = generate(model, requests, Sampling(6, temperature=1.0), trainer)
    tried = out_of_memory_above(2, monkeypatch, generator, "Generator")
    assert whole == generate(model, requests, Sampling(6, temperature=1.0), trainer)
    assert tried[0] > 2
    assert max(tried[3:]) <= max(tried[0], 4) // 2 + 1


@pytest.mark.parametrize("replayed", [0, 2])
def test_an_adapter_is_the_same_in_parts(neox, tmp_path, trainer, monkeypatch, replayed):
    weights = tiny.weights(neox)
    texts = [encode_response(LanguageModel(weights), r.prompt, r.text, True) for r in RESPONSES]
    settings = LoraSettings(rank=4, epochs=2, batch_size=4, learning_rate=1e-3, replay_weight=1.0)

    def trained(name, trainer=trainer):
        finetune(weights, texts, settings, trainer, tmp_path / name, seed=3, key="k", replay=texts[:replayed])
        return load_file(tmp_path / name / "adapter_model.safetensors")

    whole = trained("whole")
    by_bound = trained("bound", replace(trainer, max_batch_tokens=1))
    tried = out_of_memory_above(1, monkeypatch, finetuner, "Finetuner")
    in_halves = trained("halves")
    assert max(tried) > 1 == min(tried)
    for name in whole:
        torch.testing.assert_close(whole[name], by_bound[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(whole[name], in_halves[name], atol=1e-5, rtol=1e-3)


def test_where_a_single_text_is_too_much_the_error_says_what_to_change(llama, trainer, monkeypatch):
    model = LanguageModel(tiny.weights(llama))
    out_of_memory_above(0, monkeypatch, scorer, "Scorer")
    with pytest.raises(ModelError, match="not enough memory to score a single text; load the model in a smaller"):
        scorer.score(RESPONSES, model, model, trainer)


def test_another_error_is_not_taken_for_want_of_memory(llama, trainer, monkeypatch):
    model = LanguageModel(tiny.weights(llama))
    tried = out_of_memory_above(2, monkeypatch, scorer, "Scorer", RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        scorer.score(RESPONSES, model, model, trainer)
    assert tried == [5]
