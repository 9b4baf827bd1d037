"""What ``experiments/gather.py`` makes of a sweep, and what ``wrong_teacher.py`` and ``rules.py`` there ask."""

import importlib
import json

import pytest

from tests.unit.experiments.test_published_numbers import EXPERIMENTS, load
from tskd.tasks.atlas import Atlas

gather = load(EXPERIMENTS / "gather.py")


def save_job(sweep, name, overrides, correct, iterations=1):
    """A job whose target answers the private questions of ``correct``, and one general question wrong."""
    job = sweep / name
    for folder in (".hydra", "evaluation"):
        (job / folder).mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    (job / "result.json").write_text(json.dumps({"iterations": iterations}))
    (job / "metrics.jsonl").write_text("".join(json.dumps({"iteration": i}) + "\n" for i in range(iterations)))
    answers = [{"question": question, "response": "", "correct": value} for question, value in correct.items()]
    answers.append({"question": "general", "response": "", "correct": False, "split": "general"})
    file = job / "evaluation" / f"iteration_{iterations - 1}.jsonl"
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def test_jobs_are_named_by_what_they_differ_in(tmp_path):
    save_job(tmp_path, "a", ["seed=0", "iterations=1"], {"q": True})
    save_job(tmp_path, "b", ["seed=1", "iterations=1"], {"q": False})
    assert {"seed=0": {"iterations": 1}, "seed=1": {"iterations": 1}} == gather.gather(tmp_path)


def test_where_jobs_hold_out_different_questions_those_of_all_are_compared(tmp_path):
    save_job(tmp_path, "a", ["seeds=2"], {"p": False, "q": True, "r": True})
    save_job(tmp_path, "b", ["seeds=8"], {"q": True, "r": False})
    found = gather.gather(tmp_path)
    assert {"seeds=2": 1.0, "seeds=8": 0.5} == {name: each["eval/common_accuracy"] for name, each in found.items()}
    assert {2} == {each["eval/common_questions"] for each in found.values()}


def test_a_row_for_each_iteration_where_it_is_asked_for(tmp_path):
    save_job(tmp_path, "a", ["seed=0"], {"q": True}, iterations=2)
    save_job(tmp_path, "b", ["seed=1"], {"q": True}, iterations=1)
    names = ["seed=0,iteration=0", "seed=0,iteration=1", "seed=1,iteration=0"]
    assert names == list(gather.gather(tmp_path, by_iteration=True))


def test_a_tenth_of_the_facts_is_taught_wrong_and_no_seed_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    wrong = importlib.import_module("wrong_teacher").wrong_answers()
    truth = {question.prompt.text: question.answer for question in Atlas().examples()}
    assert 10 * len(wrong) == len(truth)
    assert not {seed.text for seed in Atlas().seed_prompts()} & set(wrong)
    assert not any(truth[question] == answer for question, answer in wrong.items())
    assert sorted(wrong.values()) == sorted(truth[question] for question in wrong)


def test_every_rule_that_needs_no_private_data_is_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    rules = importlib.import_module("rules").RULES
    of_another, private, by_another_name = {"at_most", "seeds_only"}, {"discriminator"}, {"recommended"}
    known = {file.stem for file in (EXPERIMENTS.parent / "conf" / "selection").glob("*.yaml")}
    assert known - of_another - private - by_another_name == set(rules)
