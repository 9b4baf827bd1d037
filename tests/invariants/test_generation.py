"""What is generated depends on the request alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.engines.own import generate
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer

TEXTS = ["a", "some words", "x" * 30, "hello", "A longer question, of more words?", "zz"]
SAMPLED = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9)
GREEDY = Sampling(max_new_tokens=12)


def generated(model, sampling, texts=TEXTS, max_batch_tokens=8192):
    trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    requests = [Request(encode_prefix(model, text), key=text) for text in texts]
    return generate(model, requests, sampling, trainer)


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


@pytest.mark.parametrize("rows", [1, 2])
def test_the_vocabulary_head_sees_contiguous_input(llama, trainer, rows):
    # Otherwise a frozen head is copied once per row on a CPU: minutes and gigabytes with a large vocabulary. A single
    # row is contiguous whatever its stride, by which it is copied all the same.
    model = LanguageModel(tiny.weights(llama))
    strides = []
    model.weights.model.get_output_embeddings().register_forward_hook(
        lambda _, args, __: strides.append((args[0].stride(), torch.empty(args[0].shape).stride()))
    )
    generate(model, [Request((5, 6, 7, n)) for n in range(rows)], GREEDY, trainer)
    assert len(strides) >= 2
    assert all(seen == fresh for seen, fresh in strides)


def test_what_several_requests_read_is_computed_once(llama, monkeypatch):
    model = LanguageModel(tiny.weights(llama))
    read = []
    real = model.weights.model.forward

    def forward(input_ids, **rest):
        read.append(tuple(input_ids.shape))
        return real(input_ids=input_ids, **rest)

    ids, other = encode_prefix(model, "the same few words"), encode_prefix(model, "other words")
    requests = [Request(ids, str(key)) for key in range(6)] + [Request(other, "x")]
    trainer = LightningTrainer(accelerator="cpu", progress=False)
    alone = [generate(model, [request], Sampling(8, temperature=1.0), trainer)[0] for request in requests]
    monkeypatch.setattr(model.weights.model, "forward", forward)
    assert alone == generate(model, requests, Sampling(8, temperature=1.0), trainer)
    assert len({text.text for text in alone}) > 1
    assert read[:2] == [(2, len(ids)), (7, 1)]
