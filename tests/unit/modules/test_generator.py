"""Where a text ends, on models whose every byte is foretold."""

import pytest
import torch

from tests import scripted, tiny
from tests.scripted import END
from tskd.engines.own import generate
from tskd.errors import ModelError
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer

CYCLE = dict(zip("abcd", "bcda", strict=True))


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory):
    """Goes round a, b, c, d without end; after a colon, one of them by chance; after a bar, the end;
    after an angle, a new line and the end."""
    follows = {**CYCLE, ":": list("abcd"), ">": "\n", "\n": END, "|": END}
    return LanguageModel(tiny.weights(scripted.save_model(tmp_path_factory.mktemp("alphabet") / "m", follows)))


def written(model, texts, trainer, max_new_tokens=10, temperature=0.0, stop=()):
    requests = [Request(encode_prefix(model, text), str(n)) for n, text in enumerate(texts)]
    return generate(model, requests, Sampling(max_new_tokens, temperature), trainer, stop=stop)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), Generation("bcdabcdabc", False, 10)),
        (("d",), Generation("bc", True, 3)),
        (("da",), Generation("bc", True, 4)),
        (("cdabc",), Generation("b", True, 6)),
        (("b",), Generation("", True, 1)),
        (("abc",), Generation("bcd", True, 6)),
        (("abd",), Generation("bcdabcdabc", False, 10)),
        (("dabcdabc",), Generation("bc", True, 10)),  # complete with the last token
        (("cdabc", "da", "x"), Generation("bc", True, 4)),  # the one that is complete first
    ],
)
def test_a_text_stops_where_the_stop_text_is_complete_and_is_cut_before_it(alphabet, trainer, stop, expected):
    assert expected == written(alphabet, ["a"], trainer, stop=stop)[0]


def test_a_stop_text_in_the_prompt_stops_nothing(alphabet, trainer):
    assert written(alphabet, ["xyxya"], trainer, 6, stop=("xy",))[0].text == "bcdabc"


def test_the_end_token_ends_a_text_and_is_no_part_of_it(alphabet, trainer):
    assert Generation("", True, 1) == written(alphabet, ["a|"], trainer)[0]


def test_white_space_at_the_ends_of_a_text_is_part_of_it(alphabet, trainer):
    assert Generation("\n", True, 2) == written(alphabet, [">"], trainer)[0]


def test_every_end_token_of_the_model_ends_a_text(alphabet, trainer, monkeypatch):
    token = alphabet.tokenizer.convert_tokens_to_ids("d")
    monkeypatch.setattr(alphabet.weights.generation_config, "eos_token_id", [1, token])
    assert ((made := written(alphabet, ["a"], trainer)[0]).finished, made.tokens) == (True, 3)


def test_texts_come_in_the_order_of_the_requests(alphabet, trainer):
    texts = ["a", "xxxxb", "|", "xxc", "xxxxxxxxxxd"]
    assert [made.text for made in written(alphabet, texts, trainer, 3)] == ["bcd", "cda", "", "dab", "abc"]


def test_the_bar_counts_texts_under_its_label_and_is_gone_in_the_end(alphabet, capfd):
    requests = [Request(encode_prefix(alphabet, text)) for text in ("a", "xxb", "c")]
    generate(alphabet, requests, Sampling(3), LightningTrainer("cpu", progress=True, max_batch_tokens=1), label="0 try")
    shown = [line for line in capfd.readouterr().err.split("\r") if line]
    assert all(line.startswith("0 try: ") for line in shown[:-1])
    assert "0/3" in shown[0]
    assert shown[-1].isspace()


def test_no_requests_give_no_texts(alphabet, trainer):
    assert generate(alphabet, [], Sampling(), trainer) == []


def test_over_many_keys_each_choice_comes_as_often_as_the_model_says(alphabet, trainer):
    made = written(alphabet, [":"] * 2000, trainer, 1, temperature=1.0)
    counts = torch.tensor([sum(one.text == letter for one in made) for letter in "abcd"])
    assert ((counts - 500).square() / 500).sum() < 11.3  # exceeded once in a hundred draws by chance


def test_the_same_key_gives_the_same_text(alphabet, trainer):
    ids = encode_prefix(alphabet, ":")
    made = generate(alphabet, [Request(ids, "k")] * 20, Sampling(2, temperature=1.0), trainer)
    assert len(set(made)) == 1


def test_a_request_may_fill_the_context_and_no_more(alphabet, trainer):
    token = alphabet.tokenizer.convert_tokens_to_ids("a")
    assert generate(alphabet, [Request((token,) * 500)], Sampling(12), trainer)[0].tokens == 12
    with pytest.raises(ModelError, match="needs 513 tokens, and m has room for 512"):
        generate(alphabet, [Request((token,) * 501)], Sampling(12), trainer)
