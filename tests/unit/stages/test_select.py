"""Selection rules: each a criterion and a cut, on scores made by hand."""

import inspect
import math
import random
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tskd import experiment
from tskd.config import hydra_plugins
from tskd.errors import ConfigError
from tskd.records import Prompt, Response, Scored, Selection
from tskd.stages import select
from tskd.stages.select.stage import ByTheSeeds, Select
from tskd.stages.select.subsets import AtMost, KeepAll, Quantile, Random, SeedsOnly, Top
from tskd.stages.select.thresholds import (
    ConfidentTeacher,
    Discriminator,
    InversePplDifference,
    Kl,
    LogPplDifference,
    PplDifference,
    PplRatio,
    SeedGap,
    SeedLikeness,
    SeedShift,
    TargetGap,
    Threshold,
    reached_by_seeds,
)

CONF = Path(hydra_plugins.folder())
RULES = sorted(file.stem for file in (CONF / "selection").glob("*.yaml"))
INF, NAN = math.inf, math.nan


def example(base_nll, teacher_nll=0.0, *, prompt="p", text="r", tokens=1, **measures):
    return Scored(Response(Prompt(prompt), text), base_nll, teacher_nll, tokens, measures)


def of_gaps(*gaps):
    """Examples whose perplexity gap is as given: the teacher is certain of each."""
    return [example(math.log1p(gap), prompt=str(i)) for i, gap in enumerate(gaps)]


def kept(rule, scored):
    """The places of what is kept."""
    selection = rule(scored)
    assert set(map(id, scored)) == {*map(id, selection.kept), *map(id, selection.dropped)}
    return [i for i, each in enumerate(scored) if any(each is one for one in selection.kept)]


ODD = [0.0, 1e-9, 0.4, 1.1, 2.0, 7.0, 1e4, INF, NAN]
SCORED = [
    example(
        *(base, teacher),
        prompt=f"{base}/{teacher}",
        kl=base,
        target_nll_per_byte=teacher,
        seed_shift=base,
        seed_likeness=base,
        private_log_odds=base,
    )
    for base in ODD
    for teacher in ODD
]
ALL_RULES = [
    KeepAll(),
    *(
        kind(0.5)
        for kind in (
            *(PplDifference, LogPplDifference, PplRatio, InversePplDifference),
            *(Kl, TargetGap, SeedShift, SeedLikeness, SeedGap, Discriminator),
        )
    ),
    ConfidentTeacher(2.0, 3.5),
    *(Top(keep, by) for keep in (7, 0.3) for by in (PplDifference, Kl)),
    *(Quantile(q, by) for q in (0.0, 0.9) for by in (LogPplDifference, PplRatio)),
    *(Random(0, like) for like in (PplDifference(1.5), Top(5))),
    Random(0, fraction=0.3),
    SeedsOnly(),
    *(AtMost(rule, 7, 0) for rule in (PplDifference(0.5), Top(5))),
]


def test_these_are_all_the_rules_that_there_are():
    """Without that, a new one could slip past the properties below."""
    classes = inspect.getmembers(
        select, lambda value: inspect.isclass(value) and value.__module__.startswith(select.__name__)
    )
    assert {type(rule) for rule in ALL_RULES} == {kind for _, kind in classes} - {Threshold, Select, ByTheSeeds}


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_kept_and_dropped_are_a_partition_in_the_order_given(rule):
    for scored in (SCORED, SCORED[::-1], SCORED[:1], []):
        selection = rule(scored)
        places = {id(each): place for place, each in enumerate(scored)}
        for side in (selection.kept, selection.dropped):
            order = [places[id(each)] for each in side]
            assert order == sorted(order)
        assert sorted(places.values()) == sorted(places[id(e)] for e in (*selection.kept, *selection.dropped))


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if not isinstance(r, KeepAll | Random | SeedsOnly)], ids=repr)
def test_what_is_no_number_is_never_kept(rule):
    measured = dict.fromkeys(("kl", "target_nll_per_byte", "seed_shift", "seed_likeness", "private_log_odds"), NAN)
    nothing = example(NAN, NAN, **measured)
    assert Selection((), (nothing, nothing)) == rule([nothing, nothing])


@pytest.mark.parametrize(
    ("kind", "scored", "expected"),
    [
        (PplDifference, example(math.log(8), math.log(3)), 5),
        (PplDifference, example(INF, 0), INF),
        (PplDifference, example(INF, INF), NAN),
        (LogPplDifference, example(2.5, 1.0), 1.5),
        (LogPplDifference, example(1.0, 2.5), -1.5),
        (LogPplDifference, example(INF, INF), NAN),
        (PplRatio, example(3.0, 2.0), 1.5),
        (PplRatio, example(3.0, 0.0), INF),
        (PplRatio, example(3.0, -1e-9), INF),  # a rounding error below certainty
        (PplRatio, example(0.0, 0.0), NAN),
        (PplRatio, example(0.0, 2.0), 0),
        (PplRatio, example(INF, INF), NAN),
        (InversePplDifference, example(math.log(4), math.log(2)), 0.25),
        (InversePplDifference, example(INF, 0), 1),
        (InversePplDifference, example(0, INF), -1),
        (InversePplDifference, example(INF, INF), 0),
        (Kl, example(1, 1, kl=0.7), 0.7),
        (TargetGap, example(9, 0.6, text="four", tokens=2, target_nll_per_byte=1.0), 1.0 - 2 * 0.6 / 4),
        (TargetGap, example(9, 0.6, text="é🙂", tokens=2, target_nll_per_byte=1.0), 1.0 - 2 * 0.6 / 6),
        (TargetGap, example(9, 0.6, text="", tokens=1, target_nll_per_byte=1.0), 0.4),
        (SeedGap, example(math.log(8), math.log(2), seed_likeness=0.5), (1 - 2 / 8) * 0.5),
        (SeedGap, example(1.0, 2.5, seed_likeness=0.5), 0),  # what the base finds likelier
        (SeedGap, example(1.0, 1.0, seed_likeness=0.5), 0),
        (SeedGap, example(INF, 1.0, seed_likeness=0.5), 0.5),
        (SeedGap, example(1.0, INF, seed_likeness=0.5), 0),
        (SeedGap, example(INF, INF, seed_likeness=0.5), NAN),
    ],
)
def test_a_criterion_is_its_formula(kind, scored, expected):
    assert expected == pytest.approx(kind.criterion(scored), nan_ok=True)


@pytest.mark.parametrize("kind", Threshold.__subclasses__())
def test_a_criterion_of_exactly_the_threshold_is_kept(kind):
    one = example(1.3, 0.4, kl=0.3, target_nll_per_byte=0.9, seed_shift=0.2, seed_likeness=0.6, private_log_odds=0.1)
    at = kind.criterion(one)
    assert [[0], []] == [kept(kind(threshold), [one]) for threshold in (at, math.nextafter(at, INF))]


def test_no_factor_of_the_seed_gap_makes_up_for_another():
    learnt, alike = {"base_nll": 9.0}, {"base_nll": 0.01}
    scored = [example(**nll, seed_likeness=likeness) for nll in (learnt, alike) for likeness in (0.9, 0.01)]
    assert [0] == kept(SeedGap(0.5), scored)  # neither a style, which was learnt too, nor what the base knows as well


def test_a_ratio_of_perplexities_is_a_difference_of_their_logarithms():
    scored = [example(base, 1.0) for base in (1.3, 1.5, 1.7)]
    assert [i for i, e in enumerate(scored) if e.base_ppl / e.teacher_ppl >= 1.6] == kept(
        LogPplDifference(math.log(1.6)), scored
    )


def test_a_confident_teacher_and_an_unsure_base_are_two_conditions():
    pairs = [(3, 1.5), (4, 2), (4, 2.5), (3.5, 2), (INF, 1), (9, INF)]
    scored = [example(math.log(base), math.log(teacher)) for base, teacher in pairs]
    assert [1, 3, 4] == kept(ConfidentTeacher(scored[1].teacher_ppl, scored[3].base_ppl), scored)  # at the bounds, too


def test_ties_are_broken_by_the_order_given_at_the_top():
    scored = of_gaps(1, 5, 1, 5, 1)
    assert [[1], [1, 3], [0, 1, 3], [0, 1, 2, 3]] == [kept(Top(count), scored) for count in (1, 2, 3, 4)]


@pytest.mark.parametrize(("keep", "expected"), [(3, 3), (99, 4), (0.5, 2), (1.0, 4), (1, 1), (0.3, 1), (0.1, 0)])
def test_the_top_is_a_count_or_a_fraction_of_what_was_scored(keep, expected):
    assert list(range(expected)) == kept(Top(keep), of_gaps(9, 8, 7, 6))


def test_the_top_is_fewer_where_fewer_are_numbers():
    assert [1] == kept(Top(2), [example(NAN), example(1.0), example(INF, INF)])


@pytest.mark.parametrize("q", [0, 0.07, 0.25, 0.5, 0.7, 0.9, 1])
@pytest.mark.parametrize("number", [1, 4, 5, 101])
def test_a_quantile_keeps_what_is_at_or_above_the_interpolated_one(q, number):
    scored = of_gaps(*(random.Random(number).choice([0, 1, 2, 3, 9]) + i % 3 for i in range(number)))
    gaps = [each.gap for each in scored]
    assert [i for i, gap in enumerate(gaps) if gap >= np.quantile(gaps, q) - 1e-12] == kept(Quantile(q), scored)


def test_a_quantile_that_falls_on_an_example_keeps_it_however_it_is_rounded():
    assert list(range(7, 101)) == kept(Quantile(0.07), of_gaps(*range(101)))  # 0.07 * 100 is 7.000000000000001


def test_equals_are_kept_together_at_a_quantile_and_the_infinite_is_the_largest():
    assert [1, 2, 3] == kept(Quantile(0.5), of_gaps(1, 5, 5, 5))
    assert [1, 2] == kept(Quantile(0.5), of_gaps(0, INF, INF, 0))
    assert [1] == kept(Quantile(1), [example(NAN), example(1.0), example(0.5)])


def test_the_criterion_to_rank_by_can_be_chosen():
    scored = [example(8.0, 7.9), example(2.0, 0.1)]  # the larger gap, and the larger gap of logarithms
    for rule in (Top, Quantile):
        assert [[0], [1]] == [kept(rule(1, by), scored) for by in (PplDifference, LogPplDifference)]


MANY = [example(i / 10, prompt=f"prompt {i}") for i in range(60)]


@pytest.mark.parametrize("like", [PplDifference(1.5), Top(7), ConfidentTeacher(2, 100), KeepAll()])
def test_chance_keeps_as_many_as_the_rule_that_it_controls(like):
    assert len(like(MANY).kept) == len(Random(0, like)(MANY).kept)


def test_chance_follows_from_seed_and_prompts_in_whatever_order():
    def drawn(seed, scored):
        return {each.response.prompt.id for each in Random(seed, fraction=0.3)(scored).kept}

    shuffled = random.Random(0).sample(MANY, len(MANY))
    assert drawn(0, MANY) == drawn(0, shuffled)
    assert 18 == len(drawn(0, MANY))
    assert drawn(0, MANY) != drawn(1, MANY)


def test_chance_knows_nothing_of_the_scores():
    others = [example(9.0, 8.0, prompt=each.response.prompt.text, text="other") for each in MANY]
    assert kept(Random(0, fraction=0.3), MANY) == kept(Random(0, fraction=0.3), others)


def test_chance_favours_nobody():
    counts = [0] * len(MANY)
    for seed in range(300):
        for i in kept(Random(seed, fraction=0.5), MANY):
            counts[i] += 1
    assert all(105 < count < 195 for count in counts)  # 150, give or take 5 standard deviations


def test_a_budget_keeps_what_the_rule_keeps_and_of_more_so_many_by_chance():
    scored = of_gaps(3, 1, 2, 0, 5)
    assert [0, 2, 4] == kept(AtMost(PplDifference(1.5), 3, seed=0), scored)
    drawn = {seed: kept(AtMost(PplDifference(1.5), 2, seed), scored) for seed in range(20)}
    assert {2} == {len(places) for places in drawn.values()}
    assert {(0, 2), (0, 4), (2, 4)} == set(map(tuple, drawn.values()))


def test_rules_that_keep_the_same_have_the_same_examples_within_a_budget():
    assert kept(AtMost(KeepAll(), 9, seed=3), MANY) == kept(AtMost(Top(len(MANY)), 9, seed=3), MANY)
    # Chance, drawn twice by the same seed, is chance drawn once.
    assert kept(AtMost(KeepAll(), 9, seed=3), MANY) == kept(AtMost(Random(3, Top(20)), 9, seed=3), MANY)


def test_a_budget_lets_the_seeds_tell_the_rules_threshold_and_says_which_it_was():
    stage = Select(AtMost(PplDifference("auto"), 2, seed=0))
    selection = stage(of_gaps(9, 4, 5, 6), of_gaps(4, 5, 6))
    assert (2, pytest.approx(4)) == (len(selection.kept), selection.threshold)


def test_seeds_are_the_prompts_that_nobody_wrote():
    written = Scored(Response(Prompt("q", parents=("p",)), "r"), 9.0, 0.0, 1)
    assert [1] == kept(SeedsOnly(), [written, example(0.1)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: InversePplDifference(1.5), "`threshold` is 1.5, and a difference of inverse perplexities is between"),
        (lambda: InversePplDifference(-1.0), "`threshold` is -1"),
        (lambda: SeedGap(1.5), "`threshold` is 1.5, and the criterion is between 0 and 1; set threshold=auto"),
        (lambda: SeedLikeness(-0.1), "`threshold` is -0.1"),
        (lambda: ConfidentTeacher(0.9, 3), "teacher_ppl_at_most` is 0.9, and a perplexity is never below 1"),
        (lambda: ConfidentTeacher(0.5, NAN), "teacher_ppl_at_most` is 0.5.*base_ppl_at_least` is nan"),
        (lambda: ConfidentTeacher(4, 3), r"teacher_ppl_at_most` \(4\) is above `base_ppl_at_least` \(3\)"),
        (lambda: Top(0), "`selection.keep` is 0; give a count of at least 1"),
        (lambda: Top(1.5), "`selection.keep` is 1.5"),
        (lambda: Top(NAN), "`selection.keep` is nan"),
        (lambda: Quantile(-0.1), "`selection.q` is -0.1"),
        (lambda: Quantile(NAN), "`selection.q` is nan"),
        (lambda: Random(0), "`selection.like` is None and `selection.fraction` None; set one"),
        (lambda: Random(0, KeepAll(), 0.5), r"`selection.like` is KeepAll\(\) and `selection.fraction` 0.5; set one"),
        (lambda: Random(0, fraction=0.0), "`selection.fraction` is 0; give one above 0"),
    ],
)
def test_parameters_that_cannot_be_are_refused_in_one_line(make, said):
    with pytest.raises(ConfigError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("by", [LogPplDifference, Kl, TargetGap])
def test_a_rule_needs_measured_what_its_criterion_needs(by):
    expected = {LogPplDifference: (), Kl: ("kl",), TargetGap: ("target_nll_per_byte",)}[by]
    rules = (by(0.0), Top(1, by), Quantile(0, by), Random(0, by(0.0)), AtMost(by(0.0), 1, 0))
    assert [expected] * 5 == [rule.measures for rule in rules]
    assert () == Random(0, fraction=0.5).measures == Random(0, KeepAll()).measures


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def built(folder, *overrides):
    return experiment.build(composed(*overrides), folder).stages


@pytest.mark.parametrize("name", RULES)
def test_every_option_builds_and_scoring_measures_what_it_needs(tmp_path, name):
    stages = built(tmp_path, f"selection={name}", "threshold=0.1")
    needed = getattr(stages.select.rule, "measures", ())
    measured = {
        "kl": "kl",
        "target_gap": "target_nll_per_byte",
        "seed_shift": "seed_shift",
        "recommended": "seed_likeness",
        "seed_likeness": "seed_likeness",
        "seed_gap": "seed_likeness",
        "discriminator": "private_log_odds",
    }
    assert tuple(filter(None, [measured.get(name)])) == needed == stages.score.measures
    assert (name == "target_gap") is (stages.score.target is not None)
    assert (measured.get(name) in ("seed_shift", "seed_likeness")) is bool(stages.score.seeds)
    assert (name == "discriminator") is (stages.score.judge is not None)
    assert not isinstance(stages.select.rule, Threshold) or stages.select.rule.threshold == 0.1


def test_a_rule_that_needs_the_private_data_is_refused_where_a_task_has_none(tmp_path):
    (tmp_path / "seeds.txt").write_text("a?\nb?\n")
    task = ["task=files", f"task.seeds={tmp_path / 'seeds.txt'}"]
    by_it = ["selection=top_gap", "selection.by=tskd.stages.select.Discriminator"]
    for selection in (["selection=discriminator"], by_it):
        with pytest.raises(
            ConfigError, match="learns from the teacher's private data, and Files has none; name its file"
        ):
            built(tmp_path, *task, *selection)


def test_every_rule_has_an_option(tmp_path):
    targets = {composed(f"selection={name}")["selection"]["_target_"] for name in RULES}
    assert {f"tskd.stages.select.{type(rule).__name__}" for rule in ALL_RULES} == targets


@pytest.mark.parametrize("name", RULES)
def test_every_setting_of_a_rule_is_written_in_its_option(name):
    node = composed(f"selection={name}")["selection"]
    kind = getattr(select, node["_target_"].rpartition(".")[2])
    # A rule of one's own is put into these options, and need not know what `auto` is.
    assert {field.name for field in fields(kind)} - {"recall"} == node.keys() - {"_target_", "recall"}


def test_any_option_can_say_how_many_chance_keeps(tmp_path):
    like = PplDifference(0.3)
    assert Random(5, like) == built(tmp_path, "selection=random", "threshold=0.3", "seed=5").select.rule
    top = ["selection@selection.like=top_gap", "selection.like.keep=3"]
    assert Random(0, Top(3)) == built(tmp_path, "selection=random", *top).select.rule
    fraction = ["selection.like=null", "selection.fraction=0.3"]
    assert Random(0, fraction=0.3) == built(tmp_path, "selection=random", *fraction).select.rule


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["selection=inverse_ppl_difference"], "`threshold` is 1.5, and a difference of inverse"),
        (["selection=top_gap", "selection.keep=0"], "`selection.keep` is 0"),
        (["selection=top_gap", "selection.by=tskd.nope"], "`selection.by` is 'tskd.nope': Invalid python path"),
        (["selection=top_gap", "selection.by=tskd.stages.select.KeepAll"], "should be a subclass of Threshold"),
        (["selection=at_most", "selection.keep=0"], "`selection.keep` is 0"),
        (["selection=at_most", "selection@selection.of=top_gap", "selection.of.keep=0"], "`selection.keep` is 0"),
        (["selection=random", "selection.fraction=0.3"], "set one and leave the other null"),
        (["selection=random", "selection.like.threshold=many"], "`selection.like.threshold` is 'many'"),
        (["selection=random", "selection.like._target_=tskd.stages.select.thresholds.Nope"], "names no class"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said) as error:
        built(tmp_path, *overrides)
    assert "\n" not in str(error.value)


def test_a_rule_of_ones_own_is_one_class_and_can_be_ranked_by(tmp_path, monkeypatch):
    (tmp_path / "own_rule.py").write_text(
        "from dataclasses import dataclass\n"
        "from tskd.stages.select import Threshold\n\n\n"
        "@dataclass(frozen=True)\n"
        "class SureStart(Threshold):\n"
        "    measures = ('first_entropy', 'first_kl')\n\n"
        "    @staticmethod\n"
        "    def criterion(example):\n"
        "        return example.measures['first_kl'] - example.measures['first_entropy']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stages = built(tmp_path, "selection._target_=own_rule.SureStart", "threshold=0.3", "allow=own_rule")
    assert ("first_entropy", "first_kl") == stages.score.measures
    scored = [example(1.0, first_kl=kl, first_entropy=0.5) for kl in (0.7, 0.9)]
    assert [1] == kept(stages.select.rule, scored)
    ranked = built(tmp_path, "selection=top_gap", "selection.by=own_rule.SureStart", "allow=own_rule")
    assert ("first_entropy", "first_kl") == ranked.score.measures
    assert [1] == kept(ranked.select.rule, scored)


def test_a_measure_that_there_is_not_is_refused_when_the_run_is_built(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Wishful:
        measures = ("kl", "novelty")

        def __call__(self, scored):
            return Selection(tuple(scored), ())

    monkeypatch.setattr(select, "Wishful", Wishful, raising=False)
    with pytest.raises(ConfigError, match=r"needs novelty, which is not measured; .* may name kl, first_"):
        built(tmp_path, "selection=all", "selection._target_=tskd.stages.select.Wishful")


def test_a_threshold_that_the_seeds_tell_is_reached_by_the_share_of_their_kind_that_was_asked_for():
    """Whatever the distribution: of many draws of seeds and one more prompt, that one reaches it often enough."""
    draws = random.Random(0)
    for recall, num_seeds in ((0.5, 8), (0.8, 9), (0.8, 24), (0.9, 30)):
        for draw in (draws.random, lambda: draws.lognormvariate(0, 3), lambda: -1 / draws.random()):
            trials = [[draw() for _ in range(num_seeds + 1)] for _ in range(4000)]
            reached = sum(values[-1] >= reached_by_seeds(values[:-1], recall) for values in trials) / len(trials)
            assert recall - 0.025 <= reached <= recall + 1 / (num_seeds + 1) + 0.025


def test_few_seeds_tell_their_smallest_value():
    assert 2.0 == reached_by_seeds([5.0, 2.0, 9.0], recall=0.9)


def test_a_seed_whose_criterion_is_no_number_tells_nothing():
    assert 2.0 == reached_by_seeds([NAN, 5.0, 2.0, INF], recall=0.8)
    with pytest.raises(ConfigError, match="2 of 3 have a criterion that is a number"):
        reached_by_seeds([NAN, 5.0, 2.0], recall=0.8)


def test_the_stage_lets_the_seeds_tell_the_threshold_and_says_which_it_was():
    seeds = of_gaps(3.0, 8.0, 5.0)
    selection = Select(PplDifference("auto"))(of_gaps(2.9, 3.1, 7.0), seeds)
    assert [3.1, 7.0] == [pytest.approx(e.gap) for e in selection.kept]
    assert pytest.approx(3.0) == selection.threshold
    assert 1.5 == Select(PplDifference(1.5))(of_gaps(2.0), seeds).threshold


def test_a_rule_that_must_first_be_told_does_not_decide_without():
    with pytest.raises(ValueError, match="auto"):
        PplDifference("auto")(of_gaps(1.0))


def test_chance_keeps_as_many_as_the_rule_whose_threshold_the_seeds_tell():
    seeds, scored = of_gaps(3.0, 8.0, 5.0), of_gaps(1.0, 4.0, 2.0, 6.0)
    selection = Select(Random(0, PplDifference("auto")))(scored, seeds)
    assert 2 == len(selection.kept)


@pytest.mark.parametrize("name", RULES)
def test_auto_is_for_rules_that_have_a_threshold(tmp_path, name):
    def build():
        return built(tmp_path, f"selection={name}", "threshold=auto").select.rule

    if issubclass(type(built(tmp_path, f"selection={name}", "threshold=0.1").select.rule), Threshold):
        assert "auto" == build().threshold
    elif name == "random":
        assert "auto" == build().like.threshold
    elif name == "at_most":
        assert "auto" == build().of.threshold
    else:
        with pytest.raises(ConfigError, match="`threshold` is auto, and .* has none that the seeds could tell"):
            build()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["threshold=autp"], "`threshold` is 'autp'; give a number, or auto"),
        (["threshold=true"], "`threshold` is True"),
        (["threshold=auto", "+selection.recall=1.2"], "`selection.recall` is 1.2"),
    ],
)
def test_what_is_no_threshold_is_refused(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        built(tmp_path, *overrides)
