"""Batch size, padding and order change nothing; adapter off is the base."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from tests import tiny
from tskd.models.encoding import TokenSequence, encode_response
from tskd.models.networks import hidden_states, vocabulary_head
from tskd.models.weights import LanguageModel
from tskd.modules.batches import by_length, pad_right
from tskd.modules.scorer import score
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response

RESPONSES = [Response(Prompt("q" * n), "answer " * (n % 5), finished=n % 3 > 0) for n in range(1, 14)]


def scores(llama, adapter, max_batch_tokens=8192):
    weights = tiny.weights(llama)
    trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    return score(RESPONSES, LanguageModel(weights), LanguageModel(weights, str(adapter)), trainer)


def test_nll_is_the_mean_loss_of_the_response_tokens_alone(llama, adapter):
    model = AutoModelForCausalLM.from_pretrained(llama)
    for example in scores(llama, adapter):
        sequence = encode_response(LanguageModel(tiny.weights(llama)), example.response.prompt, *said(example.response))
        labels = torch.tensor([[-100] * sequence.first_target + list(sequence.ids[sequence.first_target :])])
        expected = model(input_ids=torch.tensor([sequence.ids]), labels=labels).loss.item()
        assert expected == pytest.approx(example.base_nll, rel=1e-5)
        assert sequence.num_targets == example.tokens


def said(response):
    return response.text, response.finished


def test_batch_size_changes_no_score(llama, adapter):
    one_by_one = scores(llama, adapter, max_batch_tokens=1)
    for alone, together in zip(one_by_one, scores(llama, adapter), strict=True):
        assert alone.response == together.response
        assert alone.base_nll == pytest.approx(together.base_nll, rel=1e-5)
        assert alone.teacher_nll == pytest.approx(together.teacher_nll, rel=1e-5)


def test_the_teacher_scores_otherwise_than_the_base(llama, adapter):
    assert all(abs(example.base_nll - example.teacher_nll) > 1e-3 for example in scores(llama, adapter))


def test_adapter_off_is_the_base_to_the_bit(llama, adapter):
    ids = torch.arange(2, 40)[None]
    weights = tiny.weights(llama)
    with weights.speaking(str(adapter)) as model:
        teacher = model(input_ids=ids).logits
    with weights.speaking(None) as model:
        base = model(input_ids=ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(llama)(input_ids=ids).logits, base)
    assert not torch.allclose(base, teacher)


SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "final_logit_softcapping": 0.5,
}


@pytest.mark.parametrize("kind", ["llama", "neox", "gemma2", "gemma3"])
def test_decoder_and_head_give_the_models_own_logits(kind, llama, neox):
    model = {
        "llama": lambda: AutoModelForCausalLM.from_pretrained(llama),
        "neox": lambda: AutoModelForCausalLM.from_pretrained(neox),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL)),
    }[kind]().eval()
    ids = torch.randint(0, 40, (2, 9))
    mask = torch.ones_like(ids)
    logits = vocabulary_head(model, hidden_states(model, ids, mask).flatten(0, 1))
    torch.testing.assert_close(logits, model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1))


def test_batches_hold_each_index_once_within_the_bound():
    lengths = [3, 50, 7, 7, 20, 1, 9]
    batches = by_length(lengths, 24, 1000)
    assert sorted(range(7)) == sorted(i for batch in batches for i in batch)
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 24 for b in batches)


def test_targets_are_masked_by_position_where_pad_is_the_end_token():
    batch = pad_right([TokenSequence((5, 6, 0), 1), TokenSequence((7, 0), 1)], pad=0)
    assert batch.labels.tolist() == [6, 0, 0]
    assert list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_only_a_finished_response_has_an_end_token(llama):
    model = LanguageModel(tiny.weights(llama))
    finished, cut = (encode_response(model, Prompt("q"), "a", done) for done in (True, False))
    assert (*cut.ids, model.tokenizer.eos_token_id) == finished.ids
