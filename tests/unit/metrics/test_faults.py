"""What is wrong with a response is counted, and kept from rules where it is said so."""

import math

import pytest

from tests import tiny
from tskd.errors import EmptySelection, ModelError
from tskd.metrics.faults import FAULTS, is_repetitive
from tskd.metrics.iteration import iteration_metrics
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings
from tskd.records import Expansion, Iteration, Prompt, Response, Scored
from tskd.stages.select.stage import Select
from tskd.stages.select.subsets import KeepAll, Top
from tskd.stages.select.thresholds import PplDifference
from tskd.stages.train import Replay, TrainLora


def scored(text="an answer", base_nll=2.0, teacher_nll=1.0, finished=True):
    return Scored(Response(Prompt(text), text, finished), base_nll, teacher_nll, 2)


OF_EACH = {
    "sound": scored(),
    "not_finite": scored(teacher_nll=math.nan),
    "empty": scored(" "),
    "repetitive": scored("so " + "and so on, " * 4),
    "unfinished": scored("an ans", finished=False),
}
ALL = list(OF_EACH.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_counted_and_where_it_is_named_dropped(fault):
    assert [fault] == [name for name, example in OF_EACH.items() if FAULTS[fault](example)]
    selection = Select(KeepAll(), ("not_finite", fault))(ALL, ALL[:1])
    assert OF_EACH[fault] in selection.dropped
    assert OF_EACH["sound"] in selection.kept
    assert len(selection.dropped) == len({"not_finite", fault})
    row = iteration_metrics(Iteration(0, Expansion(()), tuple(ALL), selection, None), [None] * len(ALL))
    assert 1 == row[f"score/{fault}"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_a_perplexity_that_is_no_number_stops_the_run_and_is_named_where_it_may_not_be_dropped(value):
    with pytest.raises(ModelError, match=r"Response 2 of 3 .* under the base and .*drop=\[not_finite\]"):
        Select(PplDifference(1.5), ())([scored(), scored(base_nll=value), scored()], [])
    assert 2 == len(Select(KeepAll())([scored(), scored(base_nll=value), scored()], []).kept)


def test_a_rule_chooses_among_the_others():
    one, two, broken = scored("a"), scored("b", base_nll=3.0), scored("c", base_nll=9.0, finished=False)
    assert (two,) == Select(Top(1), ("unfinished",))([one, broken, two], []).kept
    assert (broken,) == Select(Top(1))([one, broken, two], []).kept


@pytest.mark.parametrize("text", ["A" * 40, "1, 2, " + "3, 4, " * 20 + "3,", "yes\n" * 9 + "yes", "x" + "ab" * 16])
def test_a_text_that_ends_in_a_loop_is_repetitive(text):
    assert is_repetitive(scored(text))


@pytest.mark.parametrize("text", ["", "aaaa", "no no no no", "A" * 40 + " and then an end", "3.000000", "abcd" * 3])
def test_a_short_repetition_or_one_that_ends_is_none(text):
    assert not is_repetitive(scored(text))


def test_too_few_examples_are_warned_of_and_end_the_run_where_more_are_asked_for(neox, trainer, tmp_path, caplog):
    target = LanguageModel(tiny.weights(neox))
    lora = LoraSettings(rank=2, epochs=1, batch_size=4)
    adapter = TrainLora(target, trainer, tmp_path, 0, lora, Replay("none"))([scored()] * 3, [], 0)
    assert 3 == adapter.num_examples
    assert "Only 3 examples were kept, less than one batch (4)" in caplog.text
    with pytest.raises(EmptySelection, match=r"leaves 3 examples to train on, and `training.min_examples` is 5"):
        TrainLora(target, trainer, tmp_path, 0, lora, Replay("none"), min_examples=5)([scored()] * 3, [], 0)
