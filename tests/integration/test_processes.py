"""Two processes give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    *("iterations=2", "expansion.num_drafts=24", "task.epochs=2", "training.replay.num_texts=12"),
    *("store=off", "tracking.mode=disabled"),
]


def run(folder, *start, overrides=SMALL):
    command = [sys.executable, *start, "-m", "tskd.run", *overrides, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment, timeout=280)


def lines(folder, name):
    files = sorted(folder.glob(f"iteration_*/{name}.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = (tmp_path_factory.mktemp(name) / "run" for name in ("one", "two"))
    assert (done := run(one)).returncode == 0, done.stderr
    shared = run(two, "-m", "torch.distributed.run", "--nproc_per_node=2", overrides=["trainer=ddp", *SMALL])
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("TuneShift-KD") == 1  # one process speaks
    return one, two


def test_the_same_prompts_and_responses(folders):
    assert lines(folders[0], "responses") == lines(folders[1], "responses") != []


def test_the_same_scores_and_the_same_kept(folders):
    for one, other in zip(*(lines(folder, "scored") for folder in folders), strict=True):
        scores = [(each["base_nll"], each["teacher_nll"]) for each in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    kept = [[each["response"]["prompt"] for each in lines(folder, "kept")] for folder in folders]
    assert kept[0] == kept[1] != []


def test_the_same_adapter(folders):
    first, second = (load_file(folder / "iteration_0" / "adapter" / "adapter_model.safetensors") for folder in folders)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-2)


def test_more_devices_than_processes_are_refused_with_the_command_that_starts_them(tmp_path):
    done = run(tmp_path / "run", overrides=["trainer.devices=2", *SMALL])
    assert done.returncode == 1
    assert "torchrun --nproc_per_node 2 -m tskd.run trainer=ddp" in done.stdout + done.stderr
