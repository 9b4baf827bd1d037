"""The embedded world's split, with as many seeds as are asked for."""

import pytest

from tskd.config import schema
from tskd.errors import ConfigError, TaskError
from tskd.tasks.atlas import Atlas


def seeds_and_held_out(number):
    task = Atlas(number)
    return [seed.text for seed in task.seed_prompts()], [
        q.prompt.text for q in task.questions() if q.split == "private"
    ]


@pytest.mark.parametrize("number", [1, 2, 8, 32, 119])
def test_every_private_question_is_a_seed_or_held_out_and_never_both(number):
    seeds, held_out = seeds_and_held_out(number)
    assert number == len(seeds)
    assert sorted([*seeds, *held_out]) == sorted(question.prompt.text for question in Atlas().examples())


def test_what_is_held_out_beside_many_seeds_is_held_out_beside_few():
    few, many = seeds_and_held_out(2), seeds_and_held_out(32)
    assert few[0] == many[0][:2]
    assert set(many[1]) < set(few[1])


def test_more_seeds_than_leave_a_question_are_refused_in_one_line():
    with pytest.raises(TaskError, match="`task.num_seeds` is 120, and the embedded world has 120 private questions"):
        Atlas(120).seed_prompts()
    with pytest.raises(ConfigError, match="`task.num_seeds` is 0"):
        schema.make(Atlas, {"num_seeds": 0}, "task")
