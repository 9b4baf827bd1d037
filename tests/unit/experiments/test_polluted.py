"""The pools that are polluted on purpose are polluted as they are said to be."""

import pytest

from tests.unit.experiments.test_published_numbers import EXPERIMENTS, load
from tests.unit.stages.test_expand import Scribe
from tskd.tasks.atlas import Atlas

Polluted = load(EXPERIMENTS / "polluted.py").Polluted
WORLD = Atlas()
SEEDS = WORLD.seed_prompts()
OTHERS = {q.prompt.text for q in WORLD.general()} - {q.prompt.text for q in WORLD.questions()}


def expand(off_task, seen=(), index=0, drafts=12):
    written = tuple(f"new {n} of {index}" for n in range(drafts))
    return Polluted(Scribe(written), seed=0, num_drafts=drafts, off_task=off_task)(SEEDS, [*SEEDS, *seen], index)


@pytest.mark.parametrize(("off_task", "added"), [(0.0, 0), (0.25, 4), (0.5, 12), (0.75, 36)])
def test_off_task_questions_are_the_share_that_was_asked_for_and_none_is_held_out(off_task, added):
    made = expand(off_task)
    others = [prompt.text for prompt in made.prompts if not prompt.text.startswith("new")]
    assert (12 + added, added) == (len(made.prompts), len(set(others)))
    assert OTHERS.issuperset(others)
    assert not any(prompt.is_seed for prompt in made.prompts)
    assert made == expand(off_task)


def test_no_question_comes_twice_and_where_all_have_come_fewer_are_added():
    first = expand(0.75, drafts=100)
    second = expand(0.75, first.prompts, 1, drafts=100)
    others = [p.text for made in (first, second) for p in made.prompts if not p.text.startswith("new")]
    assert 360 == len(others) == len(set(others))
    assert set(others) == OTHERS
