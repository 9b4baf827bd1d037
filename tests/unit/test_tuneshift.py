"""The algorithm, on stages of plain Python."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from tskd.errors import EmptySelection, NoNewPrompts
from tskd.records import Adapter, Expansion, Prompt, Response, Scored, Screening, Selection
from tskd.stages.select.stage import Select
from tskd.stages.select.thresholds import PplDifference
from tskd.storage.run_folder import RunFolder
from tskd.tuneshift import Stages, tuneshift

SEEDS = [Prompt("a"), Prompt("b")]


def stages(calls=None, keep=lambda text: True, new=lambda index: [f"n{index}", f"m{index}"]):
    calls = {} if calls is None else calls

    def expand(pool, seen, index):
        calls.setdefault("pool", []).append([p.text for p in pool])
        calls.setdefault("seen", []).append([p.text for p in seen])
        prompts = tuple(Prompt(text, (), index, ("parent",)) for text in new(index))
        return Expansion(prompts, drafts=9, duplicates=7, repeats={"one": 5, "another": 2})

    def answer(prompts):
        calls.setdefault("asked", []).append([p.text for p in prompts])
        return [Response(p, p.text.upper()) for p in prompts]

    def score(responses):
        return [Scored(r, math.log(5 if keep(r.prompt.text) else 1.2), 0.0, 3) for r in responses]

    def train(corpus, dropped, index):
        calls.setdefault("corpus", []).append([e.response.prompt.text for e in corpus])
        calls.setdefault("dropped", []).append([e.response.prompt.text for e in dropped])
        return Adapter(f"iteration_{index}/adapter", "t", len(corpus), 0.1)

    return Stages(expand, answer, score, Select(PplDifference(1.5)), train)


def test_seeds_are_asked_in_the_first_iteration_only():
    calls = {}
    list(tuneshift(SEEDS, stages(calls), iterations=2))
    assert calls["asked"] == [["a", "b", "n0", "m0"], ["n1", "m1"]]


def test_kept_prompts_join_the_pool_and_dropped_ones_are_only_seen():
    calls = {}
    list(tuneshift(SEEDS, stages(calls, keep=lambda text: not text.startswith("m")), iterations=2))
    assert calls["pool"] == [["a", "b"], ["a", "b", "n0"]]
    assert calls["seen"] == [["a", "b"], ["a", "b", "n0", "m0"]]


def test_a_dropped_seed_stays_in_the_pool():
    calls = {}
    list(tuneshift(SEEDS, stages(calls, keep=lambda text: text != "a"), iterations=2))
    assert calls["pool"][1] == ["a", "b", "n0", "m0"]


def test_the_corpus_is_all_that_was_kept_so_far():
    calls = {}
    list(tuneshift(SEEDS, stages(calls, keep=lambda text: not text.startswith("m")), iterations=2))
    assert calls["corpus"] == [["a", "b", "n0"], ["a", "b", "n0", "n1"]]
    assert calls["dropped"] == [["m0"], ["m0", "m1"]]


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_a_resumed_run_equals_the_straight_one(stopped_after):
    straight = list(tuneshift(SEEDS, stages(), iterations=3))
    resumed = list(tuneshift(SEEDS, stages(), iterations=3, history=straight[:stopped_after]))
    assert straight[stopped_after:] == resumed


def test_where_nothing_new_is_kept_the_adapter_before_stands_and_costs_nothing():
    calls = {}
    done = list(tuneshift(SEEDS, stages(calls, keep=lambda text: not text.endswith("1")), iterations=3))
    assert [len(corpus) for corpus in calls["corpus"]] == [4, 6]
    assert [i.adapter.path for i in done] == ["iteration_0/adapter", "iteration_0/adapter", "iteration_2/adapter"]
    assert done[1].adapter.num_examples == 4


def test_a_folder_gives_back_the_iterations_that_were_recorded_in_it(tmp_path):
    folder = RunFolder(tmp_path)
    recorded = folder.recording(stages(keep=lambda text: not text.endswith("1")))
    done = list(tuneshift(SEEDS, recorded, iterations=3))
    for iteration in done:
        folder.add_row({"iteration": iteration.index})
    assert done == folder.history()
    assert folder.last_adapter() == done[2].adapter


def test_training_may_wait_for_the_last_iteration():
    adapters = [i.adapter for i in tuneshift(SEEDS, stages(), iterations=3, train_each_iteration=False)]
    assert [a and a.path for a in adapters] == [None, None, "iteration_2/adapter"]


def third(done):
    return len(done) == 3


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_where_a_rule_stops_it_the_last_iteration_is_the_one_that_trains(stopped_after):
    calls = {}
    straight = list(tuneshift(SEEDS, stages(calls), iterations=9, stop=third, train_each_iteration=False))
    assert [None, None, "iteration_2/adapter"] == [i.adapter and i.adapter.path for i in straight]
    assert 1 == len(calls["corpus"])
    history = straight[:stopped_after]
    resumed = tuneshift(SEEDS, stages(), iterations=9, stop=third, train_each_iteration=False, history=history)
    assert straight[stopped_after:] == list(resumed)


def test_the_number_of_iterations_is_the_most_whatever_the_rule():
    assert 2 == len(list(tuneshift(SEEDS, stages(), iterations=2, stop=third)))


def test_it_ends_early_with_an_adapter_when_expansion_runs_dry():
    dry_after_one = stages(new=lambda index: ["n0"] if index == 0 else [])
    done = list(tuneshift(SEEDS, dry_after_one, iterations=9, train_each_iteration=False))
    assert [len(i.scored) for i in done] == [3, 0]
    assert done[-1].adapter is not None
    assert list(tuneshift(SEEDS, dry_after_one, iterations=9, history=done)) == []


def test_no_new_prompt_at_the_start_is_an_error_that_says_what_was_tried():
    with pytest.raises(NoNewPrompts, match=r"9 drafts from 2 seeds, 7 were repeats"):
        list(tuneshift(SEEDS, stages(new=lambda index: []), iterations=1))


def test_nothing_kept_is_an_error_that_names_the_widest_gap():
    with pytest.raises(
        EmptySelection, match=r"Iteration 0 kept 0 of 4 responses; the widest perplexity gap was 0\.200"
    ):
        list(tuneshift(SEEDS, stages(keep=lambda text: False), iterations=1))


def test_an_iteration_may_keep_nothing_once_there_is_a_corpus():
    done = list(tuneshift(SEEDS, stages(keep=lambda text: not text.endswith("1")), iterations=2))
    assert [i.adapter.num_examples for i in done] == [4, 4]


def scored(gap):
    return Scored(Response(Prompt("p"), "r"), math.log(1 + gap), 0.0, 1)


def test_a_gap_of_exactly_the_threshold_is_kept_and_order_is_preserved():
    examples = [Scored(Response(Prompt(str(n)), ""), math.log(n), 0.0, 1) for n in (1, 8, 2, 9)]
    threshold = examples[2].gap
    assert Selection((examples[1], examples[2], examples[3]), (examples[0],)) == PplDifference(threshold)(examples)


def test_a_gap_that_is_no_number_is_dropped():
    example = Scored(Response(Prompt("p"), "r"), 1e6, 1e6, 1)
    assert math.isnan(example.gap)
    assert Selection((), (example,)) == PplDifference(-1e9)([example])


def test_perplexity_is_infinite_where_a_float_cannot_hold_it():
    assert math.inf == Scored(Response(Prompt("p"), "r"), 1e4, 0.0, 1).gap


def test_a_prompt_is_identified_by_what_it_says():
    assert Prompt("x").id == Prompt("x", (), 3, ("y",)).id
    assert Prompt("x").id != Prompt("y").id


def test_the_algorithm_needs_no_library():
    code = (
        "import sys, tskd.tuneshift, tskd.records, tskd.errors, tskd.stages.select.thresholds;"
        "print({'torch', 'transformers', 'peft', 'hydra', 'wandb', 'pytorch_lightning'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_what_is_screened_is_neither_answered_nor_asked_for_again():
    calls = {}

    def screen(prompts, seeds):
        return Screening(*(tuple(p for p in prompts if word in p.text) for word in ("good", "bad")))

    made = replace(stages(calls, new=lambda index: [f"good {index}", f"bad {index}"]), screen=screen)
    first, second = tuneshift([Prompt("seed")], made, iterations=2)
    assert [["seed", "good 0"], ["good 1"]] == calls["asked"]
    assert ["seed", "good 0", "bad 0"] == calls["seen"][1]
    assert (["bad 0"], ["bad 1"]) == tuple([p.text for p in each.screened] for each in (first, second))


def test_selection_is_told_how_the_seeds_were_scored_in_every_iteration():
    calls, told = {}, []

    def select(scored, of_seeds):
        told.append([e.response.prompt.text for e in of_seeds])
        return Selection(tuple(scored), ())

    list(tuneshift(SEEDS, replace(stages(calls, new=lambda index: [f"new {index}"]), select=select), iterations=2))
    assert [["a", "b"]] * 2 == told
