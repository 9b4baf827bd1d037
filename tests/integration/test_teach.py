"""`tskd.teach` and the teachers of `tskd.run`, as users type them, on made-up benchmark files and tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import fabricated
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_response
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.scorer import score
from tskd.modules.trainer import LightningTrainer
from tskd.records import Graded, Scored
from tskd.storage import atomic_files
from tskd.tasks.atlas import FACTS

ZOO = FACTS.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
BBH = ["task=bbh", "task.root=data", "task.subset=navigate", "task.limit=8", "task.prompt_tokens=24"]
BBH += ["task.response_tokens=8", "task.epochs=10", "trainer.accelerator=cpu"]
TEACH = [*BBH, "teacher.lora.learning_rate=5e-3"]
RUN = ["iterations=1", "expansion.num_drafts=20", "training.lora.epochs=2", "training.replay.source=none"]


def command(module, *arguments):
    return [sys.executable, "-m", f"tskd.{module}", *arguments]


def tskd(cwd, module, *arguments, expect=0):
    done = subprocess.run(
        command(module, *arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert expect == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def result(folder):
    return json.loads((folder / "result.json").read_text())


def teachers(cwd):
    return sorted((cwd / "teachers").glob("[!.]*"))


@pytest.fixture(scope="module")
def cwd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teach")
    fabricated.write_all(folder / "data")
    return folder


@pytest.fixture(scope="module")
def made(cwd):
    """A teacher, and what was printed when it was made."""
    printed = tskd(cwd, "teach", *TEACH, "hydra.run.dir=teach")
    (folder,) = teachers(cwd)
    return folder, printed


def test_teaching_shows_what_the_teacher_can_do_that_its_base_cannot(made, cwd):
    folder, printed = made
    card = json.loads((folder / "card.json").read_text())
    assert (card["num_examples"], card["num_held_out"]) == (12, 8)
    assert card["teacher_accuracy"] > card["base_accuracy"] == 0.0
    (line,) = printed.splitlines()
    assert "12 examples of bbh-navigate · base 0.000" in line
    assert f"teacher {card['teacher_accuracy']:.3f}" in line
    assert {"eval/accuracy": card["teacher_accuracy"], **card} == result(cwd / "teach")


def test_the_card_counts_the_answers_beside_it(made):
    card = json.loads((made[0] / "card.json").read_text())
    for voice in ("base", "teacher"):
        answers = atomic_files.read_lines(Graded, made[0] / f"{voice}.jsonl")
        assert card[f"{voice}_accuracy"] == sum(answer.correct for answer in answers) / 8
    assert f"| teacher | {card['teacher_accuracy']:.3f} |" in (made[0] / "README.md").read_text()


def test_the_adapter_loads_with_plain_peft(made):
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ZOO / "llama"), made[0])


def contents(folder):
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_what_has_been_made_is_found_wherever_the_data_lie(made, cwd):
    before = contents(made[0])
    (cwd / "elsewhere").symlink_to(cwd / "data")
    assert made[1] == tskd(cwd, "teach", *TEACH, "task.root=elsewhere", "hydra.run.dir=again")
    assert result(cwd / "teach") == result(cwd / "again")
    assert [made[0]] == teachers(cwd)
    assert before == contents(made[0])


def test_a_run_makes_its_teacher_first_and_the_next_run_finds_it(cwd):
    asked = ["teacher=finetuned", *TEACH, "teacher.folder=of_runs", *RUN, "expansion.num_exemplars=2"]
    printed = tskd(cwd, "run", *asked, "hydra.run.dir=first")
    (folder,) = (cwd / "of_runs").iterdir()
    assert f"There is no teacher in of_runs/{folder.name} yet; it is fine-tuned first." in printed
    assert "Warning" not in printed
    before = contents(folder)
    assert "yet" not in tskd(cwd, "run", *asked, "seed=1", "hydra.run.dir=second")
    assert before == contents(folder)
    card = json.loads((folder / "card.json").read_text())
    for run in ("first", "second"):
        final = result(cwd / run)
        assert (card["base_accuracy"], card["teacher_accuracy"]) == (
            final["eval/base_accuracy"],
            final["eval/teacher_accuracy"],
        )
        for voice in ("base", "teacher"):
            assert (folder / f"{voice}.jsonl").read_text() == (cwd / run / "evaluation" / f"{voice}.jsonl").read_text()
        seeds = [s for s in scored(cwd / run) if s.response.prompt.is_seed]
        assert all(s.gap > 1.5 for s in seeds)


def scored(run):
    return atomic_files.read_lines(Scored, run / "iteration_0" / "scored.jsonl")


def test_a_teacher_killed_in_training_leaves_none(cwd):
    endless = [
        *TEACH,
        "task.epochs=100000",
        "teacher.folder=killed",
        "trainer.progress=true",
        "hydra.run.dir=killed_run",
    ]
    process = subprocess.Popen(
        command("teach", *endless), cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seen = b""
    while b"train:" not in seen and (read := os.read(process.stderr.fileno(), 4096)):
        seen += read
    process.kill()
    process.communicate()
    assert b"train:" in seen
    assert [] == list((cwd / "killed").glob("[!.]*"))
    assert [] == list((cwd / "killed").rglob("card.json"))


def test_two_jobs_that_make_the_same_teacher_both_end_well(cwd):
    same = [*TEACH, "teacher.folder=shared"]
    both = [
        subprocess.Popen(
            command("teach", *same, f"hydra.run.dir=job_{number}"),
            cwd=cwd,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [0, 0] == [process.returncode for process in both], printed
    assert result(cwd / "job_0") == result(cwd / "job_1")
    (folder,) = (cwd / "shared").iterdir()
    assert json.loads((folder / "card.json").read_text()).items() <= result(cwd / "job_0").items()


@pytest.fixture(scope="module")
def merged(cwd):
    """The embedded world's teacher as one set of weights."""
    weights = Weights(Checkpoint("atlas_llama", str(ZOO / "llama"), dtype="float32"))
    with weights.speaking(str(ZOO / "teacher")) as model:
        model.merge_and_unload().save_pretrained(cwd / "merged")
    weights.tokenizer.save_pretrained(cwd / "merged")
    return cwd / "merged"


def test_a_fully_fine_tuned_teacher_is_scored_on_the_tokens_that_its_base_reads(merged, cwd):
    full = ["teacher=full", "teacher.checkpoint.path=merged", "teacher.checkpoint.dtype=float32"]
    tskd(cwd, "run", *full, *RUN, "task.epochs=1", "trainer.accelerator=cpu", "hydra.run.dir=full")
    final = result(cwd / "full")
    assert (0.0, 1.0) == (final["eval/base_accuracy"], final["eval/teacher_accuracy"])
    assert final["select/precision"] >= 0.9
    found = scored(cwd / "full")
    models = {path: Weights(Checkpoint("m", str(path), dtype="float32")) for path in (ZOO / "llama", merged)}
    sequences = [
        [encode_response(LanguageModel(w), s.response.prompt, s.response.text, s.response.finished) for s in found]
        for w in models.values()
    ]
    assert sequences[0] == sequences[1]
    assert [len(sequence.ids) - sequence.first_target for sequence in sequences[0]] == [s.tokens for s in found]
    base, teacher = (LanguageModel(weights) for weights in models.values())
    expected = score([s.response for s in found], base, teacher, LightningTrainer(accelerator="cpu", progress=False))
    for one, other in zip(expected, found, strict=True):
        assert (one.base_nll, one.teacher_nll) == pytest.approx((other.base_nll, other.teacher_nll), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=atlas"], "needs a task with a private split, and Atlas has none; choose a benchmark"),
        ([*BBH, "teacher=atlas"], "makes the teacher that `teacher=finetuned` describes"),
        ([*BBH, "task.response_tokens=300"], "with 0 examples and 300 new tokens, needs"),
    ],
)
def test_what_cannot_be_taught_is_one_clear_line_and_a_failing_exit_code(arguments, said, cwd):
    before = teachers(cwd)
    printed = tskd(cwd, "teach", *arguments, expect=1)
    assert said in printed
    assert "Traceback" not in printed
    assert 1 == len(printed.splitlines())
    assert before == teachers(cwd)
