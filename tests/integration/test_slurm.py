"""A sweep on Slurm, where there is one that answers; one node without a GPU will do."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.integration import test_soak
from tests.integration.test_soak import ROOT, TINY, content
from tskd.config import sweeps

answers = shutil.which("sbatch") is not None and not subprocess.run(["sinfo"], capture_output=True).returncode
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not answers, reason="there is no Slurm here that answers `sinfo`")]
ANYWHERE = [f"hydra.launcher.{each}" for each in ("gpus_per_node=null", "cpus_per_task=1", "mem_gb=4")]
folder = test_soak.folder  # the fixture
PATIENCE = 600  # seconds; a job that is queued again waits for two minutes, by Slurm's defaults


def sweep(folder, *arguments):
    """A sweep that has been started in ``folder``, and what it prints there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "printed.txt").open("w") as printed:
        command = [sys.executable, "-m", "tskd.run", *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT)


def until(reached):
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_jobs_that_are_preempted_or_cancelled_go_on_and_end_as_those_that_were_not(folder):
    numbered = "hydra.sweep.subdir=${hydra.job.num}"
    settings = ["-m", *TINY, "trainer.max_batch_tokens=400", "seed=0,1", numbered]
    straight = sweep(folder, *settings, "hydra.sweep.dir=straight")
    assert 0 == straight.wait(PATIENCE)
    assert "Warning" not in (folder / "printed.txt").read_text()  # Lightning's, where there is srun

    on_slurm = sweep(folder, *settings, "hydra.sweep.dir=sweep", "hydra/launcher=slurm", *ANYWHERE)
    for number, how in enumerate((["--signal=USR2"], [])):
        until((folder / "sweep" / str(number) / "iteration_0" / "kept.jsonl").exists)
        (submitted,) = (folder / "sweep" / ".submitit").glob(f"*_{number}")
        subprocess.run(["scancel", *how, submitted.name], check=True)
    until(lambda: [["completed", "unfinished"]] == [statuses(folder / "sweep")])
    preempted = next((folder / "sweep" / ".submitit").glob("*_0/*.out")).read_text()
    assert "Stopped at once, with all that was finished saved" in preempted
    on_slurm.send_signal(signal.SIGINT)  # without accounting, nothing tells submitit that a job was cancelled
    assert on_slurm.wait(60) in (1, 130)
    assert "best first" in (folder / "printed.txt").read_text()
    assert "Traceback" not in (folder / "printed.txt").read_text()

    assert 0 == sweep(folder, "sweep.resume=sweep").wait(PATIENCE)
    assert ["completed"] * 2 == statuses(folder / "sweep")
    for number in ("0", "1"):
        assert content(folder / "straight" / number) == content(folder / "sweep" / number)


def statuses(folder):
    """In the order of the jobs, whatever their accuracy."""
    return [status["status"] for _, status, _ in sorted(sweeps.of_sweep(folder), key=lambda job: job[0])]
