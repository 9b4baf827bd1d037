"""What is planted beside the private facts of the embedded world (``experiments/selection/planted.py``)."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from tskd.tasks.atlas import Atlas

SELECTION = Path(__file__).parents[3] / "experiments" / "selection"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in (SELECTION.parent, SELECTION):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module("planted")


def parts(world: Any) -> dict[str, set[str]]:
    return {name: {answer.prompt.text for answer in getattr(world, name)} for name in vars(world)}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("base", ["shipped", "knowing"])
def test_each_question_of_the_world_is_planted_once(planted, base, seed):
    every = [text for part in parts(planted.plant(seed, base)).values() for text in part]
    assert sorted(every) == sorted(q.prompt.text for q in Atlas().examples() + Atlas().general())


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("base", ["shipped", "knowing"])
def test_only_the_styles_are_answered_otherwise_than_the_world_says(planted, base, seed):
    world = planted.plant(seed, base)
    given = {question.prompt.text: question.answer for question in Atlas().examples() + Atlas().general()}
    assert all(answer.text == given[answer.prompt.text] for answer in world.private + world.rehearsed)
    assert not any(answer.text == given[answer.prompt.text] for answer in world.style + world.tail + world.initial)


@pytest.mark.parametrize("base", ["shipped", "knowing"])
def test_each_seed_plants_the_style_in_other_relations(planted, base):
    styled = [
        frozenset(text.split(" of ")[0] for text in parts(planted.plant(seed, base))["style"]) for seed in planted.SEEDS
    ]
    assert all(len(relations) == len(planted.RELATIONS) // 2 for relations in styled)
    assert len(set(styled)) == len(styled)


def test_fresh_seeds_have_three_styles_of_which_two_begin_as_answers_do(planted):
    for seed in planted.FRESH:
        world = planted.plant(seed, "knowing")
        given = {question.prompt.text: question.answer for question in Atlas().general()}
        assert all(answer.text.startswith(f"{given[answer.prompt.text]} ") for answer in world.tail)
        assert all(answer.text[0].isupper() and answer.text[1] == "-" for answer in world.initial)
        assert len({planted.asked_for(answer) for answer in world.style + world.tail + world.initial}) == 3


def test_what_a_target_is_asked_is_private_and_no_seed_or_answered_in_a_style(planted):
    world = importlib.import_module("styled").Styled(world=planted.FRESH[0])
    seeds, questions = world.seed_prompts(), world.questions()
    private = [question.prompt for question in questions if question.split == "private"]
    assert 60 == len({*seeds, *private}) == len(seeds) + len(private)
    assert all(map(world.is_private, [*seeds, *private]))
    assert set(planted.STYLES) == {question.group for question in questions if question.split == "general"}
    assert {question.group or "private" for question in questions} == {world.kind(q.prompt) for q in questions}


def test_a_plain_pool_is_polluted_by_sentences_and_what_the_base_knows_alone(planted):
    pool = importlib.import_module("styled").Plain(writer=None, seed=0, world=planted.FRESH[0])
    world = planted.plant(planted.FRESH[0], "knowing")
    assert {q.prompt for q in pool.strangers()} == {answer.prompt for answer in world.style + world.alike}
