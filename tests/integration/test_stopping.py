"""A run that is asked to stop: what it has finished is saved, and it goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import tiny
from tests.integration.test_cli import result, tskd
from tskd.config import sweeps
from tskd.engines.own import generate
from tskd.errors import OutOfTime
from tskd.models.encoding import encode_response
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.finetuner import Finetuner, finetune
from tskd.modules.generator import Generator
from tskd.modules.lora import LoraSettings
from tskd.records import Prompt
from tskd.runtime import interrupts

QUICK = [
    *("iterations=1", "expansion.num_drafts=8", "task.epochs=2", "training.replay.num_texts=4"),
    *("store=off", "tracking.mode=disabled", "trainer.accelerator=cpu"),
]


def interrupted(folder, reached, number, *command):
    """The exit code and the output of a command that has got a signal once there was a file like ``reached``."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(folder.glob(reached)) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    printed = process.communicate(timeout=120)[0]
    return process.returncode, printed


def test_an_interrupted_sweep_stops_with_its_table_and_goes_on_where_it_was(tmp_path):
    sweep = ["threshold=0.5,1.5,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
    command = ["-m", "tskd.run", "-m", *QUICK, *sweep]
    code, printed = interrupted(tmp_path, "sweep/1/iteration_0/prompts.jsonl", signal.SIGINT, *command)
    assert 130 == code, printed
    assert "Stopped by SIGINT" in printed
    assert "Traceback" not in printed
    statuses = [status["status"] for _, status, _ in sweeps.of_sweep(tmp_path / "sweep")]
    assert ["completed", "stopped", "not started"] == statuses
    assert "best first" in printed
    first = tmp_path / "sweep" / "0" / "result.json"
    before = first.stat().st_mtime_ns
    tskd(tmp_path, "sweep.resume=sweep")
    assert before == first.stat().st_mtime_ns
    assert [1.0] * 3 == [result(tmp_path / "sweep" / str(job))["select/precision"] for job in range(3)]


ENDLESS = """
import time
from dataclasses import replace
from pathlib import Path
from tskd import run
from tskd.modules.generator import Generator

def compute(self, indices):
    Path("reached").touch()
    while True:
        time.sleep(0.01)

Generator.compute = compute
run.main()
"""


def test_a_second_interrupt_stops_at_once(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "endless.py", *QUICK, "hydra.run.dir=run"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        while not (tmp_path / "reached").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        while "Ctrl-C stops at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait(timeout=60)
    assert {"status": "unfinished"} == json.loads((tmp_path / "run" / "status.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_stops_before_the_next_batch(llama, trainer, number, monkeypatch):
    seen, real = [], Generator.compute

    def compute(self, indices):
        seen.append(indices)
        os.kill(os.getpid(), number)
        return real(self, indices)

    monkeypatch.setattr(interrupts, "_asked", None)
    monkeypatch.setattr(Generator, "compute", compute)
    before = signal.getsignal(number)
    requests = [Request((3, 4, 5), str(i)) for i in range(4)]
    try:
        with interrupts.heeding_signals(), pytest.raises(interrupts.Interrupted) as stop:
            generate(LanguageModel(tiny.weights(llama)), requests, Sampling(4), replace(trainer, max_batch_tokens=7))
    finally:
        signal.signal(number, before)
    assert 128 + number == stop.value.code
    assert 1 == len(seen)


def test_a_signal_that_somebody_else_handles_is_left_to_them(monkeypatch):
    before = signal.signal(signal.SIGUSR1, handler := lambda *_: None)
    try:
        with interrupts.heeding_signals():
            assert handler is signal.getsignal(signal.SIGUSR1)
            assert handler is not signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_training_goes_on_after_a_signal_that_somebody_else_handles(neox, trainer, tmp_path, monkeypatch):
    real, passed = Finetuner.accumulate, []

    def accumulate(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(Finetuner, "accumulate", accumulate)
    weights = tiny.weights(neox)
    texts = [encode_response(LanguageModel(weights), Prompt("q"), "a", finished=True)]
    before = signal.signal(signal.SIGTERM, lambda *_: passed.append(True))
    try:
        with interrupts.heeding_signals():
            finetune(weights, texts, LoraSettings(rank=2, epochs=3), trainer, tmp_path / "adapter", seed=0, key="k")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [True] * 3 == passed
    assert (tmp_path / "adapter").exists()


def test_the_time_limit_stops_before_the_next_batch(llama, trainer):
    interrupts.after(1e-12)
    try:
        with pytest.raises(OutOfTime, match=r"after 1e-12 hours \(`max_hours`\)"):
            generate(LanguageModel(tiny.weights(llama)), [Request((3,))], Sampling(4), trainer)
    finally:
        interrupts.after(None)
