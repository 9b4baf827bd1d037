"""What the records derive from what they hold."""

import dataclasses
import math

import pytest

from tskd.records import Message, Prompt, Response, Scored, perplexity

ASKED = Prompt("x", (Message("system", "s"),))


@pytest.mark.parametrize(("nll", "expected"), [(0, 1), (math.log(8), 8), (1e4, math.inf), (math.inf, math.inf)])
def test_perplexity_is_the_exponential_or_infinite(nll, expected):
    assert expected == pytest.approx(perplexity(nll))


def test_the_gap_is_base_perplexity_minus_teacher_perplexity():
    scored = Scored(Response(Prompt("p"), "r"), math.log(8), math.log(3), 4)
    assert pytest.approx((scored.base_ppl, scored.teacher_ppl, scored.gap)) == (8, 3, 5)


@pytest.mark.parametrize("changes", [{"iteration": 3}, {"parents": ("a", "b")}])
def test_who_wrote_a_prompt_and_when_does_not_change_its_id(changes):
    assert ASKED.id == dataclasses.replace(ASKED, **changes).id


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "y"},
        {"context": ()},
        {"context": (Message("user", "s"),)},
        {"context": (Message("system", "t"),)},
        {"context": (Message("system", "s"), Message("assistant", "s"))},
    ],
)
def test_what_a_prompt_says_and_after_what_is_its_id(changes):
    assert ASKED.id != dataclasses.replace(ASKED, **changes).id


def test_an_id_is_twelve_hex_digits_even_of_broken_unicode():
    assert len(bytes.fromhex(Prompt("\ud800").id)) * 2 == 12


def test_a_seed_is_a_prompt_without_parents():
    assert (ASKED.is_seed, dataclasses.replace(ASKED, parents=("p",)).is_seed) == (True, False)


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ASKED.text = "y"
