"""Jobs side by side, each with a GPU to itself; the GPUs are only named here, and the CPU computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SWEEP = [
    *("-m", "threshold=0.5,1.5", "iterations=1", "expansion.num_drafts=8", "task.epochs=1"),
    *("training.replay.num_texts=4", "store=off", "tracking.mode=disabled", "hydra.sweep.subdir=${hydra.job.num}"),
]


@pytest.fixture
def environment(tmp_path):
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    return {**os.environ, **places, "CUDA_VISIBLE_DEVICES": "5,7", "OMP_NUM_THREADS": "1"}


def test_processes_claim_different_gpus_and_a_third_has_the_first_that_is_free(tmp_path, environment):
    command = [
        sys.executable,
        "-c",
        "from tskd.runtime import gpus; print(gpus.claim(), gpus.claimed, flush=True); input()",
    ]
    started = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    claims = [process.stdout.readline() for process in started]
    assert ["5 0\n", "7 1\n"] == sorted(claims)
    third = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started[0].communicate("\n")
    assert claims[0] == third.stdout.readline()
    for process in (started[1], third):
        process.communicate("\n")
        assert process.returncode == 0


def test_jobs_side_by_side_have_a_gpu_each_and_the_results_of_jobs_in_turn(tmp_path, environment):
    logs, results = {}, {}
    for launcher in ("basic", "gpus"):
        command = [sys.executable, "-m", "tskd.run", *SWEEP, f"name={launcher}", f"hydra/launcher={launcher}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280)
        assert done.returncode == 0, done.stderr
        jobs = sorted((tmp_path / "outputs" / launcher).glob("*/[01]"))
        logs[launcher] = [(job / "run.log").read_text() for job in jobs]
        results[launcher] = [
            {name: value for name, value in json.loads((job / "result.json").read_text()).items() if "cost" not in name}
            for job in jobs
        ]
    assert results["basic"] == results["gpus"]
    assert 2 == len(results["gpus"])
    assert {"This job has GPU 5.", "This job has GPU 7."} == {
        log.splitlines()[0].split("] ")[1] for log in logs["gpus"]
    }
    assert not any("This job has GPU" in log for log in logs["basic"])
