"""EvalPlus itself, where it is installed, on tiny models and five problems in its format."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests import scripted, tiny
from tskd.config import hydra_plugins, saved
from tskd.models.weights import LanguageModel
from tskd.records import VOICES, Adapter
from tskd.results import code_benchmarks
from tskd.results.code_benchmarks import Problem, Sample
from tskd.results.finished_run import FinishedRun
from tskd.storage import atomic_files, run_folder

needs_evalplus = pytest.mark.skipif(
    find_spec("evalplus") is None, reason="EvalPlus is not installed: pip install 'tskd[evalplus]'"
)
ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recorded" / "evalplus"
NAMES = ("base", "teacher", "target", "iteration_0")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    mine = {
        "PYTHONPATH": str(ROOT),
        "MBPP_OVERRIDE_PATH": str(RECORDED / "problems.jsonl"),
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    return os.environ | mine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a finished run of tiny models leaves it."""
    place = tmp_path_factory.mktemp("evalplus")
    models = {"base": tiny.save_model(place / "m"), "target": tiny.save_model(place / "t", seed=1)}
    for model in models.values():
        settings = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 2048}))
    (place / "seeds.jsonl").write_text('{"prompt": "Which?"}\n')
    overrides = [
        *("name=tiny", "task=files", f"task.seeds={place / 'seeds.jsonl'}", "trainer.accelerator=cpu"),
        *(f"{role}.checkpoint.path={model}" for role, model in models.items()),
        *("base.checkpoint.name=m", "target.checkpoint.name=t"),
        *("teacher=adapter", f"teacher.adapter={tiny.save_adapter(models['base'], place / 'teacher')}"),
    ]
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        cfg = saved.resolved(compose("config", overrides))
    files = run_folder.RunFolder(place / "run")
    atomic_files.write_text(files.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))
    tiny.save_adapter(models["target"], files.iteration(0) / "adapter", seed=2)
    atomic_files.write_json(files.iteration(0) / "adapter.json", Adapter("iteration_0/adapter", "t", 1, 0.0))
    atomic_files.write_json(files.path / "result.json", {})
    return files.path


def command(folder, environment, *arguments, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "tskd.evalplus", str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert expect == done.returncode, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def printed(folder, environment):
    return command(folder, environment)


def test_the_four_voices_are_base_and_target_without_and_with_their_adapters(folder):
    models, made = code_benchmarks.models_of(FinishedRun.read(folder))
    assert list(VOICES) == list(models)
    adapters = [None, folder.parent / "teacher", None, folder / "iteration_0" / "adapter"]
    assert adapters == [model.adapter and Path(model.adapter) for model in models.values()]
    assert ["m", "m", "t", "t"] == [model.name for model in models.values()]
    assert 1 == made.trainer.devices


@needs_evalplus
def test_what_is_written_is_not_graded_without_leave(folder, printed):
    files = [folder / "evalplus" / f"{name}.jsonl" for name in NAMES]
    for file in files:
        assert f"evalplus.evaluate --dataset mbpp --samples /app/{file.name}" in printed
        assert 5 == len(atomic_files.read_lines(Sample, file))
    assert sorted(file.name for file in files) == sorted(os.listdir(folder / "evalplus"))
    assert 0o700 == (folder / "evalplus").stat().st_mode & 0o777


@needs_evalplus
def test_what_is_written_is_not_written_again_and_is_graded_with_leave(folder, printed, environment):
    recorded = atomic_files.read_lines(Sample, RECORDED / "samples.jsonl")
    for name in NAMES[1:]:
        shutil.copyfile(RECORDED / "samples.jsonl", folder / "evalplus" / f"{name}.jsonl")
    before = {file: file.stat().st_mtime_ns for file in (folder / "evalplus").iterdir()}
    shown = command(folder, environment, "--allow-code-execution")
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert "target after │ 0.500 │ 0.250 │ 0.600 │ 0.400" in " ".join(shown.split())
    result = json.loads((folder / "evalplus" / "result.json").read_text())
    assert recorded[0].digest == result["problems_md5"]
    assert "iteration_0" == result["adapter"]
    assert {"held-out": 4, "all": 5} == result["problems"]
    held_out, of_all = result["pass@1"]["held-out"], result["pass@1"]["all"]
    for voice in ("teacher", "target before", "target after"):
        assert (0.5, 0.25) == (held_out["EvalPlus MBPP"][voice], held_out["EvalPlus MBPP+"][voice])
        assert (0.6, 0.4) == (of_all["EvalPlus MBPP"][voice], of_all["EvalPlus MBPP+"][voice])
    assert (0, 0) == (held_out["EvalPlus MBPP"]["base"], of_all["EvalPlus MBPP+"]["base"])
    # What was recorded for the tests without EvalPlus is what it says today, and a second time nothing is graded.
    (verdicts, as_recorded) = (
        json.loads(file.read_text())["eval"]
        for file in (folder / "evalplus" / "target_eval_results.json", RECORDED / "samples_eval_results.json")
    )
    assert as_recorded == verdicts
    assert "EvalPlus grades" in shown
    assert "EvalPlus grades" not in command(folder, environment)


@needs_evalplus
def test_code_for_other_problems_is_refused(folder, printed, environment, tmp_path):
    fewer = tmp_path / "problems.jsonl"
    fewer.write_text("".join((RECORDED / "problems.jsonl").read_text().splitlines(keepends=True)[:-1]))
    said = command(folder, environment | {"MBPP_OVERRIDE_PATH": str(fewer)}, expect=1)
    assert "has code for other problems than EvalPlus has now" in said


@needs_evalplus
def test_problems_that_cannot_be_had_are_one_line(folder, environment, tmp_path):
    said = command(folder, environment | {"MBPP_OVERRIDE_PATH": str(tmp_path / "nowhere.jsonl")}, expect=1)
    assert 1 == len(said.splitlines())
    assert "name the file in MBPP_OVERRIDE_PATH" in said


@needs_evalplus
def test_prompts_lengths_and_stops_are_evalplus_own(tmp_path):
    import inspect

    from evalplus.codegen import run_codegen
    from evalplus.provider.base import DecoderBase
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion, make_raw_chat_prompt

    source = inspect.getsource(run_codegen)
    assert f'instruction_prefix = "{code_benchmarks.REQUEST}"' in source
    assert f'response_prefix = "{code_benchmarks.ANSWER}"' in source
    default = inspect.signature(DecoderBase.__init__).parameters["max_new_tokens"].default
    assert default == code_benchmarks.MAX_NEW_TOKENS
    completion, block = code_benchmarks.STOPS_OF_COMPLETION, code_benchmarks.STOPS_OF_BLOCK
    assert {*EOS, *extra_eos_for_direct_completion("mbpp")} == {*completion}
    assert {*EOS, "\n```\n"} == {*block}
    path = scripted.save_model(tmp_path / "m", {}, chat_template=scripted.CHAT)
    chat, problem = LanguageModel(tiny.weights(path)), Problem("Mbpp/11", '"""\nAdd … one.\n"""\n', "add_one")
    prompt = make_raw_chat_prompt(problem.text, code_benchmarks.REQUEST, code_benchmarks.ANSWER, chat.tokenizer)
    assert tuple(chat.tokenizer.encode(prompt)) == code_benchmarks.request(chat, problem).ids
