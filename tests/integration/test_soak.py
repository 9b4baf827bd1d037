"""Runs and sweeps are killed at any moment, many times, and end as if nothing had been: `make soak`.

What is killed are children of one process that has imported everything: most of a small run is else the start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tskd.config import sweeps
from tskd.tasks.atlas import FACTS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TINY = [
    *("iterations=2", "expansion.num_drafts=16", "task.epochs=2", "training.replay.num_texts=12", "store=off"),
    *("task=files", "task.seeds=seeds.jsonl", "task.held_out=eval.jsonl", "task.prompt_tokens=24"),
    *("task.response_tokens=16", "trainer.accelerator=cpu", "trainer.progress=false", "tracking.mode=disabled"),
]


@pytest.fixture
def folder(tmp_path):
    """A folder with a user's own files, seeds and a few questions of the embedded world."""
    questions = list(json.loads(FACTS.read_text())["private"].items())
    seeds = [json.dumps({"prompt": question}) for question, _ in questions[:5]]
    held_out = [json.dumps({"prompt": question, "answer": answer}) for question, answer in questions[10:18]]
    (tmp_path / "seeds.jsonl").write_text("\n".join(seeds))
    (tmp_path / "eval.jsonl").write_text("\n".join(held_out))
    return tmp_path


def python(folder, script, *arguments, timeout=900):
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from tskd import run
from tskd.modules.finetuner import Finetuner
from tskd.modules.generator import Generator
from tskd.modules.scorer import Scorer

def noting(kind, name, what):
    real = getattr(kind, name)
    def method(self, *given):
        with Path(sys.argv[-1].partition("=")[2] + ".log").open("a") as log:
            log.write(what + "\\n")
        return real(self, *given)
    setattr(kind, name, method)

noting(Generator, "compute", "batch")
noting(Scorer, "compute", "batch")
noting(Finetuner, "accumulate", "step")

def start(folder):
    if (child := os.fork()) == 0:
        os.dup2(os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.argv[1:] = [*overrides, "resume=auto", f"hydra.run.dir=runs/{folder}"]
        try:
            run.main()
        except BaseException as error:
            os._exit(error.code if isinstance(error, SystemExit) else 1)
        os._exit(0)
    return child

kills, *overrides = sys.argv[1:]
begun = time.monotonic()
assert os.waitpid(start("straight"), 0)[1] == 0
seconds = time.monotonic() - begun
killed = number = 0
while killed < int(kills):
    number += 1
    child = start(number)
    time.sleep(random.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == signal.SIGKILL:
        killed += 1
        assert os.waitpid(start(number), 0)[1] == 0, number
print(json.dumps({"seconds": seconds, "runs": number, "kills": killed}))
"""


def test_a_run_that_is_killed_at_a_random_moment_ends_as_one_that_was_not(folder):
    done = python(folder, KILLED, 20, *TINY, "trainer.max_batch_tokens=400")
    printed = (folder / "printed.txt").read_text()
    assert done.returncode == 0, done.stderr + printed[-3000:]
    said = json.loads(done.stdout)
    straight, log = folder / "runs" / "straight", work(folder, "straight")
    epoch = max(json.loads(line)["train/examples"] for line in (straight / "metrics.jsonl").read_text().splitlines())
    for number in range(1, said["runs"] + 1):
        assert content(straight) == content(folder / "runs" / str(number))
        again = {what: count - log[what] for what, count in work(folder, number).items()}
        assert 0 <= again["batch"] <= 1, (number, again)
        assert 0 <= again["step"] <= epoch, (number, again)
        assert 0 in again.values(), (number, again)


def work(folder, name):
    lines = (folder / "runs" / f"{name}.log").read_text().split()
    return {what: lines.count(what) for what in ("batch", "step")}


def content(run):
    """Of every file that tells what a run has found, all but the seconds it took."""
    files = sorted(file for kind in ("jsonl", "safetensors") for file in run.rglob(f"*.{kind}"))
    assert not (run / ".journal").exists()
    found = {str(file.relative_to(run)): file.read_bytes() for file in files if file.name != "metrics.jsonl"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in [*rows, result := json.loads((run / "result.json").read_text())]:
        del row["cost/seconds"]
    return found, rows, result


PROCESSES = """
import json, os, random, signal, sys, time
from pathlib import Path
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tskd import run

def main(arguments):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "RANK" in os.environ:
        os.setsid()  # as torchrun has it, whose processes this one only starts faster
        Path(f"process_{os.environ['RANK']}").write_text(str(os.getpid()))
    sys.argv[1:] = arguments
    run.main()

def start(count, *arguments):
    if (child := os.fork()) == 0:
        os.dup2(os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork", "max_restarts": 0}
        launch = elastic_launch(LaunchConfig(1, 1, count, **place), main) if count > 1 else main
        try:
            launch(arguments)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return child

def end(child):
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(60)  # nothing may wait for a process that is gone
    status = os.waitpid(child, 0)[1]
    signal.alarm(0)
    return status

def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

overrides = sys.argv[1:]
begun = time.monotonic()
assert end(start(2, *overrides, "hydra.run.dir=runs/straight")) == 0
seconds = time.monotonic() - begun
kills = [
    # who gets which signal, and how many go on with the run
    (["0"], signal.SIGKILL, 2),
    (["1"], signal.SIGKILL, 1),
    (["torchrun"], signal.SIGTERM, 2),
    (["torchrun", "0", "1"], signal.SIGKILL, 1),
    (["torchrun"], signal.SIGINT, 2),
    (["torchrun"], signal.SIGKILL, 2),
]
for number, (whom, how, then) in enumerate(kills):
    folder = Path(f"runs/{number}")
    child = start(2, *overrides, f"hydra.run.dir={folder}")
    while not (folder / "config.yaml").exists():
        time.sleep(0.01)
    time.sleep(random.uniform(0, seconds) * 0.8)
    ranks = {rank: int(Path(f"process_{rank}").read_text()) for rank in "01"}
    for each in whom:
        if is_alive(pid := {"torchrun": child, **ranks}[each]):
            os.kill(pid, how)
    status = end(child)
    assert status != signal.SIGKILL or how == signal.SIGKILL, (number, "it hung")
    for pid in ranks.values():
        while is_alive(pid) and time.monotonic() - begun < 300:
            time.sleep(0.1)
        assert not is_alive(pid), (number, "it was left behind")
    said = json.loads((folder / "status.json").read_text())
    assert how == signal.SIGKILL or said["status"] in ("stopped", "completed"), (number, said)
    print(then, flush=True)
    assert end(start(then, f"resume={folder}")) == 0, number
"""


def test_a_run_of_two_processes_that_loses_some_or_all_of_them_ends_as_one_that_did_not(folder):
    done = python(folder, PROCESSES, *TINY[1:], "iterations=1", "trainer=ddp", "trainer.max_batch_tokens=400")
    printed = (folder / "printed.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + printed[-3000:]
    straight = content(folder / "runs" / "straight")
    assert "2 1 2 1 2 2" == " ".join(done.stdout.split())
    for number, processes in enumerate(done.stdout.split()):
        found = content(folder / "runs" / str(number))
        if processes == "2":
            assert straight == found, number
        else:  # of a training, one process adds the gradients up in another order
            assert without_training(straight) == without_training(found), number
            for file in (file for file in straight[0] if file.endswith("safetensors")):
                torch.testing.assert_close(load(found[0][file]), load(straight[0][file]), atol=1e-4, rtol=1e-2)


def without_training(content):
    found, rows, result = content
    records = {file: content for file, content in found.items() if not file.endswith("safetensors")}
    return records, [{key: value for key, value in row.items() if key != "train/loss"} for row in [*rows, result]]


FAULTY = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
import torch
from tskd.stages.select import KeepAll

@dataclass(frozen=True)
class Faulty(KeepAll):
    fault: str = "none"

    def __call__(self, scored):
        if not Path("mended").exists():
            if self.fault == "fails":
                raise ValueError("on purpose")
            if self.fault == "out_of_memory":
                torch.empty(2**60)
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(scored)
"""


def test_a_sweep_with_a_failing_a_killed_and_a_job_without_memory_is_completed_once_it_can(folder):
    (folder / "faulty.py").write_text(FAULTY)
    sweep = folder / "sweep"
    faults = ("a", "fails", "out_of_memory", "b", "killed")
    main = "from tskd import run; run.main()"
    settings = [
        "allow=faulty",
        "selection._target_=faulty.Faulty",
        "~selection.threshold",
        f"+selection.fault={','.join(faults)}",
    ]
    places = ["hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
    done = python(folder, main, "-m", *TINY, *settings, *places)
    assert done.returncode == 1, done.stdout + done.stderr
    assert ["completed", "failed", "failed", "completed", "unfinished"] == statuses(sweep)
    assert "on purpose" in (sweep / "1" / "error.txt").read_text()
    assert "allocate" in (sweep / "2" / "error.txt").read_text()
    assert "best first" in done.stdout
    assert "+selection.fault=fails: ValueError: on purpose" in done.stdout
    assert "+selection.fault=killed: did not finish" in done.stdout
    first, scored = (sweep / "0" / "result.json").stat(), (sweep / "4" / "iteration_0" / "scored.jsonl").stat()

    (folder / "mended").touch()
    done = python(folder, main, "sweep.resume=sweep", "allow=faulty")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ["completed"] * 5 == statuses(sweep)
    assert first.st_mtime_ns == (sweep / "0" / "result.json").stat().st_mtime_ns
    assert scored.st_mtime_ns == (sweep / "4" / "iteration_0" / "scored.jsonl").stat().st_mtime_ns
    assert all(content(sweep / "0") == content(sweep / str(job)) for job in range(1, 5))


def statuses(sweep):
    """In the order of the jobs, as the table has them."""
    table = {name: status["status"] for name, status, _ in sweeps.of_sweep(sweep)}
    return [table[f"+selection.fault={fault}"] for fault in ("a", "fails", "out_of_memory", "b", "killed")]


GROWING = """
import psutil
from tskd import run
from tskd.storage import status

def noting(name):
    real = getattr(status, name)
    def record(*given):
        real(*given)
        print("resident", name, psutil.Process().memory_info().rss, flush=True)
    setattr(status, name, record)

noting("record_success")
noting("record_failure")
run.main()
"""


def test_thirty_jobs_in_one_process_take_no_more_memory_than_a_few(folder):
    sweep = ["iterations=1", "seed=range(15)", "threshold=1.5,1e9"]
    done = python(folder, GROWING, "-m", *TINY[1:], *sweep, "hydra.sweep.dir=sweep")
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("resident")]
    assert ["record_success", "record_failure"] * 15 == [how for how, _ in told], done.stdout + done.stderr
    sizes = [int(size) for _, size in told]
    assert max(sizes[5:]) <= 1.1 * sizes[4]
