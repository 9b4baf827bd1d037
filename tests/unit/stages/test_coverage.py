"""What is said to be known, against what is known: on drafts whose source can be asked."""

import random
from statistics import fmean

import pytest

from tskd.records import Expansion, Iteration, Prompt, Response, Scored, Selection
from tskd.stages.coverage import Covered, coverage


def iteration(drafts, before=(), seeds=(), is_kept=lambda text: True):
    """The iteration in which ``drafts`` were written, after those ``before``."""
    known = {p.fingerprint for p in seeds} | {p.fingerprint for past in before for p in past.expansion.prompts}
    new, repeats = [], {}
    for text in drafts:
        prompt = Prompt(text, (), len(before), ("parent",))
        if prompt.fingerprint in known:
            repeats[prompt.fingerprint] = repeats.get(prompt.fingerprint, 0) + 1
        else:
            known.add(prompt.fingerprint)
            new.append(prompt)
    scored = [Scored(Response(p, "r"), 1.0, 0.0, 1) for p in [*(seeds if not before else ()), *new]]
    kept = tuple(e for e in scored if is_kept(e.response.prompt.text))
    expansion = Expansion(tuple(new), len(drafts), sum(repeats.values()), repeats=repeats)
    return Iteration(len(before), expansion, tuple(scored), Selection(kept, ()), None)


def test_it_is_the_share_of_drafts_that_would_be_known_without_themselves_and_one_more_that_is_not():
    seeds = [Prompt("seed")]
    first = iteration(["a", "b", "b", "c", "seed", "dropped", "dropped"], seeds=seeds, is_kept=lambda t: t != "dropped")
    assert coverage([first]) == pytest.approx(3 / 6)  # b, b and seed of a, b, b, c, seed and one more
    second = iteration(["a", "c", "d", "e", "e", "dropped"], [first], is_kept=lambda t: t != "dropped")
    assert coverage([first, second]) == pytest.approx(4 / 6)  # a, c, e, e of a, c, d, e, e and one more


@pytest.mark.parametrize("drafts", [[], ["a"], ["dropped", "dropped"]])
def test_nothing_is_covered_where_no_draft_says_so(drafts):
    assert coverage([iteration(drafts, is_kept=lambda text: text == "a")]) == 0


def test_few_drafts_never_say_that_all_is_there():
    seeds, covered = [Prompt("seed")], Covered(0.95)
    assert [False, True] == [covered([iteration(["seed"] * draws, seeds=seeds)]) for draws in (18, 20)]


@pytest.mark.parametrize("kinds", [40, 400, 4000])
def test_it_is_right_on_average_about_a_source_of_any_size_though_a_skewed_one(kinds):
    """Good's theorem, in the second of two iterations that draw alike within themselves and not like each other."""
    rng = random.Random(kinds)
    texts, weights = [str(n) for n in range(kinds)], [1 / (n + 1) for n in range(kinds)]
    told, true = [], []
    for _ in range(60):
        first = iteration(rng.choices(texts, k=100))
        second = iteration(rng.choices(texts, weights, k=200), [first])
        known = {p.text for past in (first, second) for p in past.expansion.prompts}
        told.append(coverage([first, second]))
        true.append(sum(w for t, w in zip(texts, weights, strict=True) if t in known) / sum(weights))
    assert fmean(told) == pytest.approx(fmean(true), abs=0.02)
