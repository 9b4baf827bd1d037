"""How the algorithm ends where there is nothing to learn."""

import re

import pytest

from tskd.errors import EmptySelection, NoNewPrompts, NothingToLearn, TskdError
from tskd.records import Expansion, Prompt, Response, Scored
from tskd.stages.select.stage import Select
from tskd.stages.select.thresholds import PplDifference
from tskd.tuneshift import Stages, tuneshift


def run(nlls, expansion):
    """One iteration in which the n-th response has the n-th of ``nlls`` under base and teacher alike."""

    def score(responses):
        return [Scored(response, nll, nll, 1) for response, nll in zip(responses, nlls, strict=True)]

    def never(*_):
        raise AssertionError("there is nothing to train on")

    stages = Stages(
        expand=lambda pool, seen, index: expansion,
        answer=lambda prompts: [Response(prompt, "") for prompt in prompts],
        score=score,
        select=Select(PplDifference(1.5)),
        train=never,
    )
    return list(tuneshift([Prompt("a")], stages, iterations=1))


def new(*texts):
    return Expansion(tuple(Prompt(text, (), 0, ("p",)) for text in texts), drafts=9, duplicates=6, malformed=3)


def test_no_new_prompt_says_what_was_drafted_and_which_settings_change_it():
    said = (
        "of 9 drafts from 1 seeds, 6 were repeats, 0 near-duplicates, 0 held-out questions and 3 unusable. "
        ".*`expansion.num_drafts`.*`expansion.writer`"
    )
    with pytest.raises(NoNewPrompts, match=said):
        run([], new())


def test_gaps_that_are_no_number_are_not_the_widest():
    no_number = 1e6  # infinite perplexity under both models
    with pytest.raises(EmptySelection, match=re.escape("kept 0 of 3 responses; the widest perplexity gap was 0.000.")):
        run([no_number, 0.5, no_number], new("b", "c"))


@pytest.mark.parametrize("error", [NoNewPrompts, EmptySelection])
def test_both_ends_are_one_kind_of_error(error):
    assert issubclass(error, NothingToLearn)
    assert issubclass(error, TskdError)
