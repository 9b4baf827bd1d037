"""Whatever generates, a text is the model's, ends where it must, and comes in the order of the requests."""

from dataclasses import replace

import pytest
import torch

from tests import scripted, tiny
from tests.scripted import END
from tskd.engines.continuous_batching import ContinuousBatching
from tskd.engines.own import OwnLoop, generate
from tskd.errors import ModelError
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Ending, Generation, Request, Sampling
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.resume import ResumableTrainer
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import processes
from tskd.storage.journal import Journal

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
TEXTS = ["a", "some words", "x" * 100, "hello", "A longer question, of more words?", "zz"]


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory):
    """Goes round a, b, c, d without end; after a colon, any letter by chance; after a bar, the end."""
    follows = {**dict(zip("abcd", "bcda", strict=True)), ":": list(LETTERS), "|": END}
    return LanguageModel(tiny.weights(scripted.save_model(tmp_path_factory.mktemp("alphabet") / "m", follows)))


@pytest.fixture(params=[OwnLoop, ContinuousBatching])
def by_engine(request):
    return LightningTrainer("cpu", progress=False), request.param()


@pytest.fixture
def paged(trainer):
    return trainer, ContinuousBatching()


def written(model, texts, by, max_new_tokens=8, temperature=0.0, stop=(), top_p=1.0):
    requests = [Request(encode_prefix(model, text), str(n)) for n, text in enumerate(texts)]
    return generate(model, requests, Sampling(max_new_tokens, temperature, top_p), *by, stop=stop)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), Generation("bcdabcda", False, 8)),
        (("d",), Generation("bc", True, 3)),
        (("cdabc",), Generation("b", True, 6)),
        (("b",), Generation("", True, 1)),
        (("abd",), Generation("bcdabcda", False, 8)),
        (("dabcda",), Generation("bc", True, 8)),
    ],
)
def test_a_text_stops_where_the_stop_text_is_complete_and_is_cut_before_it(alphabet, by_engine, stop, expected):
    assert [expected] * 3 == written(alphabet, ["a"] * 3, by_engine, stop=stop)


def test_an_end_token_ends_a_text_and_the_texts_come_in_the_order_of_the_requests(alphabet, by_engine):
    made = written(alphabet, ["a", "xxxxb", "|", "xxc"], by_engine, 3)
    assert [Generation(text, False, 3) for text in ("bcd", "cda", "", "dab")][:2] == made[:2]
    assert [Generation("", True, 1), Generation("dab", False, 3)] == made[2:]


def test_no_requests_give_no_texts(alphabet, by_engine):
    assert [] == generate(alphabet, [], Sampling(), *by_engine)


def test_a_request_may_fill_the_context_and_no_more(alphabet, by_engine):
    token = alphabet.tokenizer.convert_tokens_to_ids("a")
    assert 12 == generate(alphabet, [Request((token,) * 500)], Sampling(12), *by_engine)[0].tokens
    with pytest.raises(ModelError, match="needs 513 tokens, and m has room for 512"):
        generate(alphabet, [Request((token,) * 501)], Sampling(12), *by_engine)


def test_any_token_that_the_model_holds_possible_may_be_sampled(alphabet, by_engine):
    made = written(alphabet, [":"] * 600, by_engine, 1, temperature=1.0)
    assert set(LETTERS) == {one.text for one in made}  # by chance one is missing in 1 of 280 sets of keys


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_paged_greedy_texts_are_those_of_our_own_loop(kind, request, trainer, paged):
    model = LanguageModel(tiny.weights(request.getfixturevalue(kind)))
    assert written(model, TEXTS, [trainer]) == written(model, TEXTS, paged)


def test_a_cache_smaller_than_all_texts_changes_none(llama, trainer, monkeypatch):
    model = LanguageModel(tiny.weights(llama))
    paged = replace(trainer, max_batch_tokens=1), ContinuousBatching()
    monkeypatch.setattr("tskd.engines.continuous_batching.SPARE_PAGES", 1)
    assert written(model, TEXTS, [trainer], 40) == written(model, TEXTS, paged, 40)


@pytest.mark.parametrize("attention", [None, "eager"])
def test_base_and_teacher_take_turns_on_one_set_of_weights(llama, adapter, trainer, paged, attention):
    weights = Weights(Checkpoint("m", str(llama), dtype="float32", attention=attention))
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    expected = {model: written(model, TEXTS, [trainer]) for model in (base, teacher)}
    assert expected[base] != expected[teacher]
    for model in (teacher, base):
        assert expected[model] == written(model, TEXTS, paged)
        assert expected[model] == written(model, TEXTS, [trainer])  # what it did to the model, it undid


def test_one_call_samples_the_same_again_and_leaves_other_random_numbers_alone(llama, paged):
    model = LanguageModel(tiny.weights(llama))
    state = torch.get_rng_state()
    first, again = (written(model, TEXTS, paged, temperature=1.0, top_p=0.9, stop=("e",)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again
    assert first[:-1] != written(model, TEXTS[:-1], paged, temperature=1.0, top_p=0.9, stop=("e",))  # another call


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_off_call_goes_on_to_the_same_texts(llama, paged, tmp_path, monkeypatch, temperature):
    model, real, ended = LanguageModel(tiny.weights(llama)), Ending.cut, []

    def cut(self, tokens):
        if len(ended) == limit:
            raise KeyboardInterrupt
        ended.append(tokens)
        return real(self, tokens)

    monkeypatch.setattr(Ending, "cut", cut)
    limit = None
    whole = written(model, TEXTS, paged, temperature=temperature)
    ended.clear()
    noting = ResumableTrainer("cpu", progress=False, journal=Journal(tmp_path)), ContinuousBatching()
    limit = 2
    with pytest.raises(KeyboardInterrupt):
        written(model, TEXTS, noting, temperature=temperature)
    limit = None
    assert whole == written(model, TEXTS, noting, temperature=temperature)
    # A greedy text is not made again; what is sampled together is.
    assert 2 + len(TEXTS) - (2 if temperature == 0 else 0) == len(ended)
    ended.clear()
    assert whole == written(model, TEXTS, noting, temperature=temperature)
    assert [] == ended


def test_what_fails_within_is_one_line(llama, paged, monkeypatch):
    model = LanguageModel(tiny.weights(llama))

    def forward(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(model.weights.model, "forward", forward)
    with pytest.raises(ModelError, match="failed: out of memory; lower `trainer.max_batch_tokens`"):
        written(model, TEXTS, paged)


def test_attention_that_cannot_be_paged_is_refused_before_anything_loads(llama):
    weights = Weights(Checkpoint("m", str(llama), attention="flex_attention"))
    with pytest.raises(ModelError, match="'m' has attention 'flex_attention'"):
        ContinuousBatching().check([LanguageModel(weights)], 16)
    assert not weights.is_loaded


def test_of_several_processes_the_first_alone_uses_another_engine(llama, paged, monkeypatch):
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert [] == written(LanguageModel(tiny.weights(llama)), TEXTS, paged)
