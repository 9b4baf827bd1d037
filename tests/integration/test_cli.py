"""The command line, as users type it, on the embedded world at a small size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import tiny, wandb_file
from tskd.tasks.atlas import FACTS

ZOO = FACTS.parent
SMALL = [
    "iterations=2",
    "expansion.num_drafts=40",
    "training.lora.epochs=2",
    "training.replay.num_texts=64",
    "trainer.accelerator=cpu",
    "store=off",  # or a resumed run would take what it has to compute
]


def command(*arguments):
    return [sys.executable, "-m", "tskd.run", *arguments]


def tskd(cwd, *arguments, expect=0):
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert expect == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """One finished small run and what it printed."""
    cwd = tmp_path_factory.mktemp("straight")
    printed = tskd(cwd, *SMALL, "hydra.run.dir=run")
    return cwd / "run", printed


def test_a_run_shows_its_iterations_and_the_table(straight):
    _, printed = straight
    for shown in (
        "iteration 0",
        "iteration 1",
        "teacher",
        "target after",
        "points gained",
        "recovered gain",
        "adapter",
    ):
        assert shown in printed
    assert "Traceback" not in printed
    assert "Warning" not in printed


def test_a_run_leaves_the_files_that_are_documented(straight):
    folder, _ = straight
    for index in (0, 1):
        for name in ("prompts.jsonl", "responses.jsonl", "scored.jsonl", "kept.jsonl", "dropped.jsonl", "adapter"):
            assert (folder / f"iteration_{index}" / name).exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    final = result(folder)
    assert rows[-1]["eval/accuracy"] == final["eval/accuracy"]
    assert tuple(final[f"eval/{who}_accuracy"] for who in ("base", "teacher", "target")) == (0.0, 1.0, 0.0)
    assert sum(row["select/kept"] for row in rows) == final["select/kept"] == final["train/examples"]
    assert json.loads((folder / "status.json").read_text())["status"] == "completed"
    assert 0 < rows[0]["prompts/coverage"] < rows[1]["prompts/coverage"] == final["prompts/coverage"] < 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["threshold"] == 1.5


def test_the_rule_separates_private_from_general_on_the_atlas(straight):
    final = result(straight[0])
    assert final["select/precision"] >= 0.9
    assert final["select/recall"] >= 0.95


def test_the_adapter_loads_with_plain_peft(straight):
    model = AutoModelForCausalLM.from_pretrained(ZOO / "neox")
    PeftModel.from_pretrained(model, straight[0] / "iteration_1" / "adapter")


def test_weights_and_biases_has_no_text(straight):
    seed = json.loads(FACTS.read_text())["seeds"][0].encode()
    written = [file for file in (straight[0] / "wandb").rglob("*") if file.is_file()]
    assert written
    assert not any(seed in file.read_bytes() for file in written)


@pytest.mark.parametrize("stage", ["responses.jsonl", "kept.jsonl", "adapter.json"])
def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(straight, tmp_path, stage):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command(*SMALL, "hydra.run.dir=run"),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reached = tmp_path / "run" / "iteration_1" / stage
    deadline = time.monotonic() + 240
    while not reached.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert reached.exists()
    assert not (tmp_path / "run" / "result.json").exists()

    tskd(tmp_path, "resume=run", "threshold=1.5")
    for name in ("prompts", "responses", "scored", "kept", "dropped"):
        file = Path("iteration_1") / f"{name}.jsonl"
        assert (straight[0] / file).read_text() == (tmp_path / "run" / file).read_text()
    weights = Path("iteration_1") / "adapter" / "adapter_model.safetensors"
    assert (straight[0] / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()
    expected, got = (
        {k: v for k, v in result(f).items() if k != "cost/seconds"} for f in (straight[0], tmp_path / "run")
    )
    assert expected == got
    assert_is_one_whole_wandb_run(tmp_path / "run")


def assert_is_one_whole_wandb_run(folder):
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # before and after the kill
    deadline = time.monotonic() + 10  # the service that writes them may outlive the job
    while wandb_file.read(files[1])["exit_code"] is None and time.monotonic() < deadline:
        time.sleep(0.1)
    runs = [wandb_file.read(file) for file in files]
    assert len({run["id"] for run in runs}) == 1
    assert [0, 1] == [row["iteration"] for run in runs for row in run["history"] if "select/kept" in row]
    assert result(folder)["eval/accuracy"] == runs[1]["summary"]["eval/accuracy"]


def test_resuming_refuses_what_contradicts_the_run(straight):
    folder = straight[0]
    assert "contradicts the run" in tskd(folder.parent, "resume=run", "threshold=0.5", expect=1)
    assert "holds no run" in tskd(folder.parent, "resume=nowhere", expect=1)
    assert "takes one run and no options" in tskd(folder.parent, "resume=run", "-m", expect=1)


def test_a_sweep_is_one_group_of_runs_and_a_failing_job_does_not_stop_it(tmp_path):
    printed = tskd(tmp_path, "-m", *SMALL[1:], "iterations=1", "threshold=1e9,1.5,0", "hydra.sweep.dir=sweep", expect=1)
    sweep = tmp_path / "sweep"
    statuses = {f.parent.name: json.loads(f.read_text())["status"] for f in sweep.glob("*/status.json")}
    assert sorted(statuses.values()) == ["completed", "completed", "failed"]
    (failed,) = (name for name, status in statuses.items() if status == "failed")
    assert "kept 0 of" in (sweep / failed / "error.txt").read_text()
    assert (sweep / failed / "iteration_0" / "scored.jsonl").exists()
    assert "jobs, best first" in printed
    assert "Lower `threshold`" in printed
    runs = [r for r in wandb_file.of_folder(sweep) if r["exit_code"] == 0]
    assert len({run["id"] for run in runs}) == 2
    assert {"sweep"} == {run["group"] for run in runs}
    assert {0.0, 1.5} == {run["config"]["threshold"] for run in runs}
    for run in runs:
        assert [row["iteration"] for row in run["history"] if "select/kept" in row] == [0]


def test_a_users_own_case_runs_from_files_with_and_without_answers(tmp_path):
    private = json.loads(FACTS.read_text())["private"]
    questions = list(private.items())
    seeds = [{"prompt": q} for q, _ in questions[:4]]
    seeds.append(
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": questions[4][0]}]}
    )
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds))
    labelled = [{"prompt": q, "answer": a} for q, a in questions[10:20]]
    bare = [{"prompt": q} for q, _ in questions[20:30]]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled + bare))
    tskd(
        tmp_path,
        *SMALL,
        "iterations=1",
        "base=llama3",
        f"base.checkpoint.path={ZOO / 'llama'}",
        "base.checkpoint.dtype=float32",
        f"teacher.adapter={ZOO / 'teacher'}",
        "target=smollm2_135m",
        f"target.checkpoint.path={ZOO / 'neox'}",
        "target.checkpoint.dtype=float32",
        "task=files",
        "task.seeds=seeds.jsonl",
        "task.held_out=eval.jsonl",
        "task.prompt_tokens=24",
        "task.response_tokens=16",
        "hydra.run.dir=run",
    )
    final = result(tmp_path / "run")
    assert final["eval/teacher_accuracy"] == 1.0
    assert "select/precision" not in final


def test_the_facts_move_into_any_llama_given_by_path(tmp_path):
    target = tiny.save_model(tmp_path / "tiny-llama-3")
    tskd(tmp_path, *SMALL, "iterations=1", "target=llama3", f"target.checkpoint.path={target}", "hydra.run.dir=run")
    assert json.loads((tmp_path / "run" / "iteration_0" / "adapter.json").read_text())["target"] == "llama3"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["threshold=nan"], "`threshold` is nan; give a number, or auto."),
        (["threshold=abc"], "`threshold` is 'abc'; give a number, or auto."),
        (["treshold=1"], "Could not override 'treshold'"),
        (["target=lama3"], "Available options in 'target'"),
        (["threshold=0.5,1.0"], "--multirun"),
        (["iterations=0"], "`iterations` is 0; give a whole number, at least 1, or auto."),
        (["task=files", "task.seeds=nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["task=files"], "Missing mandatory value: seeds full_key: task.seeds"),
        (["teacher.adapter=/nowhere"], "There is no folder /nowhere for adapter"),
        (["-m", "threshold=0,1", "target=atlas_neox,lama3"], "Available options in 'target'"),
        (["-m", "trainer.devices=2"], "`trainer.devices` is 2 in a sweep; give each job one device"),
        (["hydra.run.dir=/proc/nowhere"], "Cannot write to /proc/nowhere"),
    ],
)
def test_bad_input_is_one_clear_line_and_a_failing_exit_code(tmp_path, arguments, said):
    printed = tskd(tmp_path, *arguments, expect=1)
    assert said in printed
    assert "Traceback" not in printed
    assert "not started" not in printed  # no table of jobs that there will never be


def test_jobs_that_set_the_name_of_the_folder_are_in_that_of_their_sweep_all_the_same(tmp_path):
    printed = tskd(tmp_path, "-m", "iterations=0", "experiment=paper,arms/all", expect=1)
    (sweep,) = (tmp_path / "outputs").glob("*/*")
    assert {"experiment=paper", "experiment=arms_all"} == {
        folder.name.partition("-")[0].partition(",")[0] for folder in sweep.iterdir() if folder.is_dir()
    }
    assert printed.count("`iterations` is 0; give a whole number") == 4  # in the log, and below the table
    assert "not started" not in printed


def test_folders_of_two_sweeps_started_together_differ(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen(
            command("-m", "iterations=0", "seed=1"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    for process in both:
        process.wait()
    assert len(list((tmp_path / "outputs" / "tuneshift").iterdir())) == 2
