"""What is generated depends on the request alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.errors import ModelError
from tskd.models import LanguageModel
from tskd.modules.batches import encode_prefix
from tskd.modules.generator import Request, Sampling, choose, generate
from tskd.modules.trainer import LightningTrainer

TEXTS = ["a", "some words", "x" * 30, "hello", "A longer question, of more words?", "zz"]
SAMPLED = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9)
GREEDY = Sampling(max_new_tokens=12)


def requests(model, texts=TEXTS):
    return [Request(encode_prefix(model, text), key=text) for text in texts]


def generated(model, sampling, texts=TEXTS, max_batch_tokens=8192, **settings):
    trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    return generate(model, requests(model, texts), sampling, trainer, **settings)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_batch_size_and_neighbours_change_no_text(sampling, kind, request):
    model = LanguageModel(tiny.weights(request.getfixturevalue(kind)))
    together = generated(model, sampling)
    assert together == generated(model, sampling, max_batch_tokens=1)
    assert together[::-1] == generated(model, sampling, TEXTS[::-1], max_batch_tokens=100)
    assert together[2:3] == generated(model, sampling, TEXTS[2:3])


def test_greedy_text_is_that_of_transformers(llama):
    model = LanguageModel(tiny.weights(llama))
    network = AutoModelForCausalLM.from_pretrained(llama)
    for text, mine in zip(TEXTS, generated(model, GREEDY), strict=True):
        ids = torch.tensor([encode_prefix(model, text)])
        out = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        new = out[0, ids.shape[1] :]
        assert model.tokenizer.decode(new, skip_special_tokens=True).strip() == mine.text
        assert len(new) == mine.tokens


def test_another_key_samples_another_text(llama, trainer):
    model = LanguageModel(tiny.weights(llama))
    ids = encode_prefix(model, "q")
    texts = {g.text for g in generate(model, [Request(ids, str(n)) for n in range(8)], SAMPLED, trainer)}
    assert len(texts) > 4


def test_sampling_follows_the_models_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    chosen = choose(logits.expand(100_000, 4), uniform, Sampling(temperature=0.5))
    frequencies = chosen.bincount(minlength=4) / 100_000
    torch.testing.assert_close(frequencies, (logits[0] / 0.5).softmax(-1), atol=1e-4, rtol=0)


def test_top_p_keeps_the_smallest_set_of_that_mass():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(1000, 4)
    uniform = torch.arange(1000) / 1000
    assert {0, 1} == set(choose(logits, uniform, Sampling(temperature=1.0, top_p=0.7)).tolist())


def test_a_text_cut_by_the_limit_is_unfinished_and_one_that_stopped_is_not(llama):
    model = LanguageModel(tiny.weights(llama))
    cut = generated(model, GREEDY, ["a"])[0]
    assert (cut.finished, cut.tokens) == (False, 12)
    stop = cut.text[4]
    stopped = generated(model, GREEDY, ["a"], stop=stop)[0]
    assert (cut.text.split(stop)[0].strip(), True) == (stopped.text, stopped.finished)


def test_a_request_beyond_the_context_is_refused_with_the_numbers(llama):
    with pytest.raises(ModelError, match="needs 513 tokens, and tiny-llama has room for 512"):
        generated(LanguageModel(tiny.weights(llama)), GREEDY, ["x" * 500])


def test_the_vocabulary_head_sees_contiguous_input(llama):
    # Otherwise a frozen head is copied once per row on a CPU: minutes and gigabytes with a large vocabulary.
    weights = tiny.weights(llama)
    contiguous = []
    weights.model.get_output_embeddings().register_forward_hook(
        lambda _, args, __: contiguous.append(args[0].is_contiguous())
    )
    generated(LanguageModel(weights), GREEDY)
    assert len(contiguous) >= 12
    assert all(contiguous)
