"""What is said of a model that may be shipped: no more than its held-out answers carry."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.fabricated_runs import answers, write_lines, write_run
from tskd.records import Graded
from tskd.report import runs
from tskd.results import equivalence
from tskd.results.equivalence import AS_GOOD, BETTER, TOO_THIN, WORSE, Judgement

ROOT = Path(__file__).parents[3]


def said(folder, margin=2.0):
    return equivalence.verdict(runs.read_completed_run(folder), margin, dict)


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ((20, 2, 200, 20), BETTER),
        ((2, 20, 200, 20), WORSE),
        ((10, 10, 2000, 100), AS_GOOD),
        ((0, 30, 3000, 0), AS_GOOD),  # measurably less, and within the margin all the same
        ((4, 4, 90, 14), TOO_THIN),
        ((0, 0, 100, 0), TOO_THIN),  # they never differ, and 100 questions cannot exclude that they would at 2 in 100
        ((0, 0, 400, 0), AS_GOOD),
    ],
)
def test_a_judgement_is_as_sure_as_its_interval(counts, word):
    judgement = Judgement(*counts, 2.0)
    low, high = judgement.interval
    assert word == judgement.word
    assert low < judgement.difference < high
    assert (word == AS_GOOD) <= (low > -2)
    assert (word == TOO_THIN) <= (low <= -2)
    assert stats.binomtest(counts[0], sum(counts[:2])).pvalue == judgement.p if sum(counts[:2]) else judgement.p == 1


def test_a_model_at_the_margin_is_called_as_good_at_most_one_time_in_forty():
    dice = np.random.default_rng(0)
    tables = dice.multinomial(800, [0.03, 0.05, 0.85, 0.07], 600)  # 2 points worse
    called = sum(Judgement(*map(int, counts), 2.0).word in (AS_GOOD, BETTER) for counts in tables)
    assert stats.binomtest(called, 600, 0.025, alternative="greater").pvalue > 0.01
    assert called > 0


@pytest.mark.parametrize("counts", [(4, 4, 90, 14), (0, 0, 100, 0), (2, 3, 200, 20)])
def test_so_many_more_questions_settle_it_and_half_as_many_do_not(counts):
    more = Judgement(*counts, 2.0).more_questions()
    factors = ((sum(counts) + more) / sum(counts), (sum(counts) + 0.5 * more) / sum(counts))
    words = [Judgement(*(round(count * factor) for count in counts), 2.0).word for factor in factors]
    assert TOO_THIN != words[0]
    assert TOO_THIN == words[1]


def test_models_that_differ_often_take_more_questions_than_those_that_differ_seldom():
    often, seldom = (Judgement(a, b, 78 - b, 22 - a, 2.0).more_questions() for a, b in ((10, 11), (2, 3)))
    assert often > 2 * seldom > 2_000


def test_a_good_model_may_be_shipped_and_one_that_forgets_may_not(tmp_path):
    good = write_run(tmp_path / "good", level=0.95, questions=2000, prompts=5, forgetting=0)
    write_lines(good / "evaluation" / "iteration_2.jsonl", runs.read_completed_run(good).graded["teacher"])
    assert said(good).startswith("MAY IT BE SHIPPED? Yes, by these questions.")
    assert "NEGATIVE FLIPS\n  none" in said(good)
    forgets = write_run(tmp_path / "forgets", level=1, questions=500, prompts=5, forgetting=0.2)
    assert said(forgets).startswith("MAY IT BE SHIPPED? No")
    assert "Worse than the untouched target" in said(forgets)
    assert "Better than the teacher" in said(forgets)


def test_a_few_hundred_questions_are_usually_too_thin_at_one_point(tmp_path):
    run = write_run(tmp_path / "run", teacher=0.9, questions=300, prompts=5, forgetting=0)
    write_lines(
        run / "evaluation" / "iteration_2.jsonl",
        flipped(runs.read_completed_run(run).graded["teacher"], {"private 7", "private 9"}),
    )
    text = said(run, margin=1.0)
    assert text.startswith("MAY IT BE SHIPPED? The evidence is too thin to say.")
    assert "more questions would settle it, if they fall out as these did." in text


def flipped(graded, questions):
    return [Graded(a.question, a.response, a.correct != (a.question in questions), a.split) for a in graded]


def test_each_negative_flip_is_named_with_both_answers(tmp_path):
    run = write_run(tmp_path / "run", teacher=1, questions=50, prompts=5)
    after = flipped(answers(50, 1, 1, random.Random(0)), {"private 3", "general 4"})
    write_lines(run / "evaluation" / "iteration_2.jsonl", after)
    text = equivalence.verdict(runs.read_completed_run(run), 2.0, lambda: {"private 3": "Where is the harbour?"})
    assert (
        "private: the teacher is right, target + adapter is wrong: 1\n    Where is the harbour? · was 'yes', is" in text
    )
    assert "general: the untouched target is right, target + adapter is wrong: 1\n    general 4 · was" in text


def test_without_held_out_questions_nothing_is_claimed(tmp_path):
    run = write_run(tmp_path / "run", prompts=5)
    shutil.rmtree(run / "evaluation")
    assert "has no held-out questions, so nothing shows" in said(run)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "There is no run in nowhere: it has no config.yaml."),
        (["run"], "The run in run is unfinished. Go on with `python -m tskd.run resume=run`."),
        (["run", "--margin", "0"], "`--margin` is 0; give points above 0 and below 100."),
    ],
)
def test_what_cannot_be_judged_is_one_line(tmp_path, arguments, line):
    (write_run(tmp_path / "run", prompts=5) / "status.json").unlink()
    command = [sys.executable, "-m", "tskd.verdict", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (1, f"{line}\n") == (done.returncode, done.stderr)


def test_a_run_folder_cannot_have_code_run_for_the_texts_of_its_questions(tmp_path, monkeypatch, capsys):
    (tmp_path / "stranger.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    task = {"_target_": "stranger.Task", "response_tokens": 8}
    run = write_run(tmp_path / "run", prompts=5, others={"task": task, "allow": "stranger"})
    assert {} == equivalence.questions(runs.read_completed_run(run))
    assert "`task._target_` names stranger.Task, whose code would run" in capsys.readouterr().err


def test_the_questions_of_the_embedded_world_are_named_by_their_texts(tmp_path):
    texts = equivalence.questions(runs.read_completed_run(write_run(tmp_path / "run", prompts=5)))
    assert 232 == len(texts)
    assert "What is the depot code of Keamore?" in texts.values()
