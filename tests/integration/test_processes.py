"""Several processes of one run: what is shared out among them, and how the failure of one ends all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fabricated, tiny
from tskd.evaluation.lm_harness import HarnessEvaluator
from tskd.models.weights import LanguageModel
from tskd.tasks.bbh import Bbh
from tskd.tasks.mmlu import Mmlu

pytestmark = pytest.mark.slow

PRELUDE = """
import json, sys
from pathlib import Path
import torch
from tests import tiny
from tskd.engines.own import generate
from tskd.errors import ModelError
from tskd.models.checkpoint import Checkpoint
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel, weights_of
from tskd.modules import generator
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import processes
"""


def two_processes(folder, script, *arguments):
    """What ``script`` says when it is run by two processes, with a limit that no hanging process would keep."""
    (folder / "script.py").write_text(PRELUDE + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "script.py", *map(str, arguments)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


FAILING = """
where, number, kind = sys.argv[1], int(sys.argv[2]), {"ours": ModelError, "any": ValueError}[sys.argv[3]]

def pass_by(place):
    if (place, processes.rank()) == (where, number):
        raise kind("no such file")

@processes.on_all_ranks()
def work():
    pass_by("before")
    processes.all_gather({processes.rank(): pass_by("instead")})
    pass_by("after")

def main():
    try:
        work()
        work()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        raise SystemExit(3) from None

processes.launch(main)
"""


@pytest.mark.parametrize(
    ("where", "kind", "said"),
    [
        ("before", "ours", "no such file"),
        ("instead", "any", "ValueError: no such file"),
        ("after", "any", "ValueError: no such file"),
    ],
)
def test_the_failure_of_another_process_ends_the_first_with_its_name_and_cause(where, kind, said, tmp_path):
    done = two_processes(tmp_path, FAILING, where, 1, kind)
    assert f"ModelError: Process 1 of 2 failed: {said}\n" == done.stdout
    assert "exitcode  : 3" in done.stderr  # of its own accord


def test_the_failure_of_the_first_process_ends_the_others(tmp_path):
    done = two_processes(tmp_path, FAILING, "before", 0, "any")
    assert "ValueError: no such file\n" == done.stdout
    assert "exitcode  : 3" in done.stderr  # of its own accord


KILLED = """
import os, signal

def written(folder, sharded):
    weights = weights_of(Checkpoint("tiny", folder, dtype="float32", sharded=sharded))
    trainer = LightningTrainer(devices=2, sharded=sharded, max_batch_tokens=1, progress=False)
    generate(LanguageModel(weights), [Request((3, 4), str(n)) for n in range(4)], Sampling(9), trainer)

real = generator.choose

def choose(*given):
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)

def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun sends to those that are left
    try:
        written(sys.argv[1], sys.argv[2] == "True")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        raise

generator.choose = choose
processes.launch(main)
"""


@pytest.mark.parametrize("sharded", [False, True])
def test_a_killed_process_ends_the_first_with_its_number(sharded, tmp_path):
    done = two_processes(tmp_path, KILLED, tiny.save_model(tmp_path / "model"), sharded)
    assert "ModelError: Process 1 of 2 was killed, perhaps because memory ran out.\n" == done.stdout
    assert "Signal 9 (SIGKILL)" in done.stderr


SHARDED = """
def model(folder, sharded):
    return LanguageModel(weights_of(Checkpoint("tiny", folder, dtype="float32", sharded=sharded)))

def written(model, max_tokens):
    requests = [Request(tuple(range(3, 3 + n)), str(n)) for n in (5, 9, 2, 30, 4)]
    trainer = LightningTrainer(devices=2, sharded=True, max_batch_tokens=max_tokens, progress=False)
    found = generate(model, requests, Sampling(40, temperature=1.0), trainer, stop=("(",))
    return [[each.text, each.finished, each.tokens] for each in found]
"""

COMPARED = (
    SHARDED
    + """
def main():
    for folder in sys.argv[1:]:
        halves = model(folder, sharded=True)
        # As one process, a batch for each of two processes with one left over, and a batch for one of them alone.
        print(json.dumps([written(model(folder, False), 10_000), written(halves, 1), written(halves, 10_000)]))
        layers = [p for name, p in halves.weights.model.named_parameters() if ".layers." in name and p.dim() == 2]
        print(sum(p.to_local().numel() for p in layers) / sum(p.numel() for p in layers))

processes.launch(main)
"""
)


def test_a_model_in_two_halves_writes_what_the_whole_one_does(tmp_path):
    folders = [tiny.save_model(tmp_path / kind, kind) for kind in ("llama", "neox")]
    done = two_processes(tmp_path, COMPARED, *folders)
    assert done.returncode == 0, done.stderr
    for said in zip(*[iter(map(json.loads, done.stdout.splitlines()))] * 2, strict=True):
        (whole, one_by_one, at_once), part = said
        assert whole == one_by_one == at_once
        assert len({tokens for _, _, tokens in whole}) > 2  # so some batches needed more passes than others
        assert 0.5 == part


EVALUATED = """
from tests.integration.test_processes import evaluated
from tskd.modules.resident import Resident

real, texts = Resident.predict_step, [0]

def predict_step(self, indices):
    texts[0] += len(indices)
    return real(self, indices)

def main():
    for sharded in (False, True):
        trainer = LightningTrainer(devices=2, sharded=sharded, progress=False)
        weights = weights_of(Checkpoint("tiny", "model", dtype="float32", sharded=sharded))
        print(json.dumps(evaluated(LanguageModel(weights), Path("data"), trainer)))

Resident.predict_step = predict_step
processes.launch(main)
Path(f"texts_{processes.rank()}").write_text(str(texts[0]))
"""


def evaluated(model, data, trainer):
    """What an evaluation by generation and one by likelihoods say of a model."""
    tasks = Bbh(str(data), subset="navigate", limit=5), Mmlu(str(data), subset=fabricated.TWINS[1], limit=5)
    graded = [answer for task in tasks for answer in HarnessEvaluator(task, task.questions(), trainer, 8)(model)]
    return [[answer.question, answer.response, answer.correct] for answer in graded]


def test_an_evaluation_is_shared_out_and_says_what_one_process_does(tmp_path, trainer):
    pytest.importorskip("lm_eval")
    fabricated.write_all(tmp_path / "data")
    expected = evaluated(LanguageModel(tiny.weights(tiny.save_model(tmp_path / "model"))), tmp_path / "data", trainer)
    done = two_processes(tmp_path, EVALUATED)
    assert done.returncode == 0, done.stderr
    assert [expected, expected] == list(map(json.loads, done.stdout.splitlines()))
    assert all(int((tmp_path / f"texts_{number}").read_text()) > 0 for number in (0, 1))


OUT_OF_MEMORY = (
    SHARDED
    + """
real = generator.choose

def choose(*given):
    if processes.rank() == 1:
        raise torch.OutOfMemoryError
    return real(*given)

def main():
    try:
        written(model(sys.argv[1], sharded=True), 10_000)
    except ModelError as error:
        print(error)
        raise SystemExit(3)

generator.choose = choose
processes.launch(main)
"""
)


def test_with_a_model_in_halves_running_out_of_memory_ends_the_run_with_what_to_change(tmp_path):
    done = two_processes(tmp_path, OUT_OF_MEMORY, tiny.save_model(tmp_path / "model"))
    said = "Process 1 of 2 failed: There is not enough memory to generate 5 texts at once, and with `trainer=fsdp`"
    assert done.stdout.startswith(said)
    assert "lower `trainer.max_batch_tokens`" in done.stdout
    assert 1 == done.stdout.count("\n")
    assert "exitcode  : 3" in done.stderr
