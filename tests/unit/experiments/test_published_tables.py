"""What a report counts, and what it does not."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tskd.config import hydra_plugins, saved
from tskd.errors import RunFolderError
from tskd.report import grid
from tskd.tasks.bbh import TASKS, Bbh
from tskd.tasks.gsm8k import Gsm8k
from tskd.tasks.mbpp import Mbpp
from tskd.tasks.mmlu import Mmlu

CONF = Path(hydra_plugins.folder())
ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
GSM8K = "translora/gsm8k_llama2_7b_to_gemma_7b"
BBH = "titok/bbh_mistral_7b_to_mistral_7b"
MBPP = "translora/mbpp_gemma_2b_to_gemma_7b"


def save_run(folder, experiment, *overrides, accuracy=0.5, status="completed"):
    """A folder as a finished run leaves it, made without one."""
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = saved.resolved(compose("config", [f"experiment={experiment}", *overrides]))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    result = {"eval/accuracy": accuracy, "eval/teacher_accuracy": 0.75, "eval/target_accuracy": 0.25}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text(json.dumps({"status": status}))


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for of_paper in grid.experiments().values() for row in of_paper}


def cell(rows, experiment, folder):
    runs = [found for found in grid.runs_in(folder) if not rows[experiment].differences(found)]
    return grid.obtained(rows[experiment], runs)


def test_a_cell_is_mean_and_deviation_over_the_seeds_of_each_threshold(rows, tmp_path):
    for seed, accuracy in enumerate((0.40, 0.42, 0.44)):
        save_run(tmp_path / f"{seed}", GSM8K, f"seed={seed}", accuracy=accuracy)
    save_run(tmp_path / "other", GSM8K, "threshold=0.5", accuracy=0.3)
    one, three = "threshold 0.5: 75.00 / 25.00 / 30.00, n = 1", "threshold 1.5: 75.00 / 25.00 / 42.00 ± 2.00, n = 3"
    assert f"{one}<br>{three}" == cell(rows, GSM8K, tmp_path)
    table = grid.grid([tmp_path, tmp_path])
    assert 1 == table.count(three)
    assert len(rows) - 1 == table.count("| not run |")
    assert "In no cell" not in table


def test_a_cell_of_many_tasks_is_the_mean_over_all_of_them_or_is_not_filled(rows, tmp_path):
    accuracies = [number / 100 for number in range(len(TASKS))]
    for task, accuracy in zip(TASKS[1:], accuracies[1:], strict=True):
        save_run(tmp_path / task, BBH, f"task.subset={task}", accuracy=accuracy)
    assert f"incomplete: 26 of {27 * 12} jobs" == cell(rows, BBH, tmp_path)
    save_run(tmp_path / TASKS[0], BBH, accuracy=accuracies[0])
    assert f"threshold 1.5: 75.00 / 25.00 / {100 * fmean(accuracies):.2f}, n = 1" == cell(rows, BBH, tmp_path)


def test_evalplus_numbers_and_those_of_the_original_mbpp_are_told_apart_in_a_cell(rows, tmp_path):
    for seed in (0, 1):
        save_run(tmp_path / f"{seed}", MBPP, "task.allow_code_execution=true", f"seed={seed}")
    original = "original MBPP, threshold 1.5: 75.00 / 25.00 / 50.00 ± 0.00, n = 2"
    assert original == cell(rows, MBPP, tmp_path)
    (tmp_path / "1" / "evalplus").mkdir()
    voices = {"base": 0.1, "teacher": 0.4, "target before": 0.2, "target after": 0.3}
    good = dict.fromkeys(voices, 0.9)
    numbers = {
        "problems": {"held-out": 224, "all": 378},
        "pass@1": {
            "held-out": {"EvalPlus MBPP": voices, "EvalPlus MBPP+": dict.fromkeys(voices, 0.1)},
            "all": {"EvalPlus MBPP": good, "EvalPlus MBPP+": good},
        },
    }
    (tmp_path / "1" / "evalplus" / "result.json").write_text(json.dumps(numbers))
    base, plus = "40.00 / 20.00 / 30.00, n = 1", "10.00 / 10.00 / 10.00, n = 1"
    assert {
        original,
        f"EvalPlus MBPP, 224 problems, threshold 1.5: {base}",
        f"EvalPlus MBPP+, 224 problems, threshold 1.5: {plus}",
    } == set(cell(rows, MBPP, tmp_path).split("<br>"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("scale=rehearsal", "a rehearsal"),
        ("task.limit=100", "`task.limit` is 100, not None"),
        ("task.subset=all", "`task.subset` is all, and the cell is the mean of 27 single ones"),
        ("base.checkpoint.path=/somewhere", "`base.checkpoint.path` is /somewhere, not mistralai/"),
        ("training.lora.rank=16", "`training.lora.rank` is 16, not 8"),
        ("selection=all", "`selection._target_` is tskd.stages.select.KeepAll"),
        ("base_for_scoring=llama3", "`base_for_scoring.checkpoint.path` is meta-llama/Meta-Llama-3-8B, not None"),
        ("target.checkpoint.quantization=8bit", "`target.checkpoint.quantization` is 8bit, not none"),
        ("trainer.precision=16-mixed", "`trainer.precision` is 16-mixed, not 32-true"),
    ],
)
def test_a_run_with_other_settings_fills_no_cell_and_is_listed(rows, tmp_path, monkeypatch, override, said):
    monkeypatch.chdir(tmp_path)  # where a rehearsal puts its models
    save_run(tmp_path / "runs" / "run", BBH, override)
    (found,) = grid.runs_in(tmp_path / "runs")
    assert any(said in each for each in rows[BBH].differences(found))
    assert "not run" == cell(rows, BBH, tmp_path / "runs")


def test_a_rehearsal_is_none_of_the_grid_even_where_everything_else_is_as_it_should_be(rows, tmp_path):
    save_run(tmp_path / "run", GSM8K)
    (found,) = grid.runs_in(tmp_path)
    assert [] == rows[GSM8K].differences(found)
    disguised = replace(
        found, settings={**found.settings, "target.checkpoint.path": "outputs/.rehearsal/gemma_7b-gemma"}
    )
    assert ["a rehearsal"] == rows[GSM8K].differences(disguised)


@pytest.mark.parametrize("status", ["failed", "unfinished"])
def test_a_run_that_has_not_come_to_its_end_fills_no_cell(rows, tmp_path, status):
    save_run(tmp_path / "run", GSM8K, status=status)
    assert "not run" == cell(rows, GSM8K, tmp_path)
    assert f"### In no cell\n\n- {status}: {tmp_path / 'run'}" in grid.grid([tmp_path])


@pytest.mark.parametrize(
    "override",
    ["name=mine", "tracking.mode=offline", "task.root=/data", "trainer.devices=2", "+base.checkpoint.device_map=auto"],
)
def test_where_and_how_a_run_was_computed_does_not_matter(rows, tmp_path, override):
    save_run(tmp_path / "run", GSM8K, override)
    assert cell(rows, GSM8K, tmp_path).startswith("threshold 1.5: ")


def test_a_folder_without_runs_is_one_line(tmp_path):
    with pytest.raises(RunFolderError, match="There is no run in"):
        list(grid.runs_in(tmp_path))
    command = [sys.executable, "-m", "tskd.report", "grid", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))


def test_the_grid_in_the_text_is_what_the_command_prints():
    text = (ROOT / "experiments" / "README.md").read_text()
    between = text.split("<!-- grid -->\n")[1].split("\n<!-- end of grid -->")[0]
    assert grid.grid([]) == between


def test_hours_are_tokens_times_flop_times_parameters_over_what_is_used_of_the_peak():
    tokens, parameters = 1_000_000, grid.PARAMETERS["llama2_7b"]
    assert tokens * 6 * parameters / (312e12 * 0.3) / 3600 == pytest.approx(grid.hours("train", tokens, "llama2_7b"))
    assert 3 * grid.hours("read", tokens, "gemma_7b") == pytest.approx(grid.hours("train", tokens, "gemma_7b"))


def test_every_row_has_its_estimate_and_twice_the_epochs_cost_more(rows):
    for row in rows.values():
        twice = replace(
            row, settings={**row.settings, "training.lora.epochs": 2 * row.settings["training.lora.epochs"]}
        )
        assert grid.estimate(row)[0] == grid.estimate(twice)[0] > 0
        assert 0 < grid.estimate(row)[1] < grid.estimate(twice)[1]


@pytest.mark.skipif(not DATA.is_dir(), reason="the published files do not lie beside the repository")
def test_the_estimates_lengths_are_those_of_the_published_files():
    tasks = {
        "bbh": Bbh(str(DATA)),
        "mmlu": Mmlu(str(DATA)),
        "mbpp": Mbpp(str(DATA), allow_code_execution=True, unsandboxed=True),
        "gsm8k": Gsm8k(str(DATA), chain_of_thought=False),
    }
    for name, task in tasks.items():
        examples = task.examples()
        lengths = [(len(each.prompt.text), len(each.answer)) for each in examples]
        prompt, answer = map(fmean, zip(*lengths, strict=True))
        held_out = len(task.questions())
        counted = {"private": len(examples), "held_out": held_out, "prompt": round(prompt), "answer": round(answer)}
        assert grid.TEXTS[name] == counted
