"""EvalPlus's numbers without EvalPlus: what models are asked, what is made of their texts, and of its results.

``tests/recorded/evalplus`` holds five problems in its format, code for them, and what the real ``evalplus.evaluate``
(0.3.1) wrote on that code: 11 and 602 are right, 12 is wrong, 14 fails in the added tests alone, 16 never ends.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import scripted, tiny
from tskd.errors import ConfigError, ModelError, RunFolderError
from tskd.models.generation import before_any
from tskd.models.weights import LanguageModel
from tskd.records import VOICES
from tskd.results import code_benchmarks
from tskd.results.code_benchmarks import Problem, Problems, Sample
from tskd.storage import atomic_files

ROOT = Path(__file__).parents[3]
RECORDED = ROOT / "tests" / "recorded" / "evalplus"
ROWS = [json.loads(line) for line in (RECORDED / "problems.jsonl").read_text().splitlines()]
SAMPLES = atomic_files.read_lines(Sample, RECORDED / "samples.jsonl")
PROBLEMS = Problems([Problem(row["task_id"], row["prompt"], row["entry_point"]) for row in ROWS], SAMPLES[0].digest)
ADD_ONE = '"""\nWrite a function to add one to a number.\nassert add_one(1) == 2\n"""\n'


def model(folder, follows, chat_template=None, room=2048):
    path = scripted.save_model(folder, follows, chat_template=chat_template)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": room}))
    return LanguageModel(tiny.weights(path))


@pytest.fixture
def recorded(tmp_path):
    """Samples and results, as they lie in a run's folder."""
    for name in ("samples.jsonl", "samples_eval_results.json"):
        shutil.copyfile(RECORDED / name, tmp_path / name)
    return tmp_path / "samples.jsonl"


def test_a_base_model_reads_the_problem_alone(tmp_path):
    plain = model(tmp_path / "m", {})
    ids = code_benchmarks.request(plain, PROBLEMS.all[0]).ids
    assert "<s>" + ADD_ONE == plain.tokenizer.decode(ids)


def test_a_chat_model_reads_a_request_and_the_beginning_of_its_answer(tmp_path):
    chat = model(tmp_path / "m", {}, scripted.CHAT)
    expected = (
        "<s><user>Please provide a self-contained Python script that solves the following problem in a markdown code "
        f"block:\n```\n{ADD_ONE.strip()}\n```\n</s>\n"
        "<assistant>Below is a Python script with a self-contained function that solves the problem and passes "
        "corresponding tests:\n```python\n"
    )
    assert expected == chat.tokenizer.decode(code_benchmarks.request(chat, PROBLEMS.all[0]).ids)


@pytest.mark.parametrize(
    ("follows", "solution"),
    [
        # After the problem, which ends in a new line; a tab is four spaces.
        ({"\n": "x", "x": "\t", "\t": "y", "y": "</s>"}, ADD_ONE + "x    y"),
        ({"\n": "\n"}, ADD_ONE + "\n" * 768),
        ({"\n": " ", " ": "x", "x": "</s>"}, ADD_ONE + " x"),
    ],
)
def test_a_base_models_solution_is_the_problem_and_what_it_wrote_to_the_last_space(
    tmp_path, trainer, follows, solution
):
    assert [solution] == code_benchmarks.solutions(model(tmp_path / "m", follows), PROBLEMS.all[:1], trainer)


def test_a_chat_models_solution_is_what_it_wrote(tmp_path, trainer):
    chat = model(tmp_path / "m", {"\n": "x", "x": "y", "y": "</s>"}, scripted.CHAT)
    assert ["xy"] == code_benchmarks.solutions(chat, PROBLEMS.all[:1], trainer)


@pytest.mark.parametrize(
    ("stop", "written", "left"),
    [
        (code_benchmarks.STOPS_OF_COMPLETION, "\nassert f() == 1\ndef f():\n    return 1", ""),
        (code_benchmarks.STOPS_OF_COMPLETION, 'f = 1\nprint(f)\n"""More', "f = 1"),
        (code_benchmarks.STOPS_OF_COMPLETION, 'f = """text"""', 'f = """text"""'),
        (code_benchmarks.STOPS_OF_COMPLETION, "f = 1\n```\nmore", "f = 1\n```\nmore"),
        (code_benchmarks.STOPS_OF_BLOCK, "f = 1\nassert f\n```\nprint(", "f = 1\nassert f"),
        (code_benchmarks.STOPS_OF_BLOCK, "f = 1</s>\nif __name__", "f = 1"),
    ],
)
def test_a_text_ends_before_the_first_of_the_texts_that_evalplus_stops_at(stop, written, left):
    assert left == before_any(stop, written)


def test_problems_that_do_not_fit_a_model_are_told_before_anything_is_written(tmp_path):
    with pytest.raises(ModelError, match="with 768 new tokens, needs 8.. tokens, and m has room for 512"):
        code_benchmarks.check_room(model(tmp_path / "m", {}, room=512), PROBLEMS.all)


def test_verdicts_on_every_sample_are_evalplus_own(recorded):
    verdicts = code_benchmarks.read_verdicts(recorded, SAMPLES)
    passed = {name.removeprefix("Mbpp/"): tuple(verdict.passed.values()) for name, verdict in verdicts.items()}
    neither, base_alone, both = (False, False), (True, False), (True, True)
    assert {"11": both, "12": neither, "14": base_alone, "16": neither, "602": both} == passed


def test_the_numbers_are_of_the_test_splits_problems_and_beside_them_of_all(recorded):
    verdicts = code_benchmarks.read_verdicts(recorded, SAMPLES)
    voices = {"base": verdicts, "teacher": dict.fromkeys(verdicts, verdicts["Mbpp/14"])}
    assert {"held-out": 4, "all": 5} == {name: len(chosen) for name, chosen in PROBLEMS.sets.items()}
    assert {
        "held-out": {
            "EvalPlus MBPP": {"base": 2 / 4, "teacher": 1.0},
            "EvalPlus MBPP+": {"base": 1 / 4, "teacher": 0.0},
        },
        "all": {
            "EvalPlus MBPP": {"base": 3 / 5, "teacher": 1.0},
            "EvalPlus MBPP+": {"base": 2 / 5, "teacher": 0.0},
        },
    } == {name: code_benchmarks.pass_at_1(chosen, voices) for name, chosen in PROBLEMS.sets.items()}
    assert ["all"] == list(Problems(PROBLEMS.all[-1:], "").sets)


def test_results_of_other_code_or_of_other_tests_are_not_taken(recorded):
    other = [replace(SAMPLES[0], solution="pass"), *SAMPLES[1:]]
    with pytest.raises(RunFolderError, match="is not of the code in"):
        code_benchmarks.read_verdicts(recorded, other)
    with pytest.raises(RunFolderError, match="is of other tests"):
        code_benchmarks.read_verdicts(recorded, [replace(sample, digest="0") for sample in SAMPLES])
    with pytest.raises(RunFolderError, match="is not of the code in"):
        code_benchmarks.read_verdicts(recorded, [*SAMPLES, replace(SAMPLES[0], task_id="Mbpp/17")])


def test_a_results_file_that_is_not_one_is_one_line(recorded):
    code_benchmarks.results_file(recorded).write_text("[]")
    with pytest.raises(RunFolderError, match="is no Verdicts"):
        code_benchmarks.read_verdicts(recorded, SAMPLES)


def test_without_evalplus_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "evalplus", None)
    with pytest.raises(ConfigError, match=r"pip install 'tskd\[evalplus\]'"):
        code_benchmarks.read_problems()


def test_a_folder_without_a_run_is_one_line(tmp_path):
    command = [sys.executable, "-m", "tskd.evalplus", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))


def test_the_graders_process_sees_no_keys(monkeypatch, recorded):
    seen = {}
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", "problems.jsonl")
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, env, **__: seen.update(env) or done)
    code_benchmarks.grade(recorded)
    assert "problems.jsonl" == seen["MBPP_OVERRIDE_PATH"]
    assert "secret" not in seen.values()


def test_voices_are_those_that_the_grid_reads():
    from tskd.report import grid

    assert grid.TRANSFER == VOICES[1:]
