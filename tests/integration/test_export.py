"""Exporting and trying a finished run, as users type it, on the embedded world at a small size."""

import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import LanguageModel, Weights
from tskd.results import packaging
from tskd.stages.answer import Answer
from tskd.tasks.atlas import FACTS, Atlas

ZOO = FACTS.parent
LAST = "iteration_1"
SMALL = [
    "iterations=2",
    "expansion.num_drafts=40",
    "training.lora.epochs=6",
    "training.replay.num_texts=64",
    "trainer.accelerator=cpu",
    "tracking.mode=disabled",
]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def python(cwd, module, *arguments, typed="", expect=0):
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, input=typed, capture_output=True, text=True, timeout=300)
    assert expect == done.returncode, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def cwd(tmp_path_factory):
    """A folder with one finished small run, ``run``."""
    folder = tmp_path_factory.mktemp("export")
    python(folder, "tskd.run", *SMALL, "hydra.run.dir=run")
    return folder


@pytest.fixture(scope="session")
def adapter(cwd):
    return packaging.export(cwd / "run", cwd / "adapter")


@pytest.fixture(scope="session")
def merged(cwd):
    return packaging.export(cwd / "run", cwd / "merged", merged=True)


@pytest.fixture
def try_here(cwd, monkeypatch, capsys):
    """The same as ``python -m tskd.chat`` in the run's folder, in this process."""

    def main(*arguments, typed, expect=0):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["try", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        try:
            importlib.import_module("tskd.try").main()
            code = 0
        except SystemExit as error:
            code = error.code
        assert expect == code
        return "".join(capsys.readouterr())

    return main


def graded(cwd, name):
    """The answers of the run's own evaluation, by the id of the question."""
    lines = (cwd / "run" / "evaluation" / f"{name}.jsonl").read_text().splitlines()
    return {row["question"]: row["response"] for row in map(json.loads, lines)}


def shipped_text(folder):
    files = [file for file in folder.iterdir() if file.suffix != ".safetensors"]
    assert folder / "README.md" in files
    return "\n".join(file.read_text() for file in files)


def logits(adapter):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ZOO / "neox"), adapter)
    with torch.inference_mode():
        return model(torch.arange(60).reshape(2, 30)).logits


def test_the_exported_adapter_loads_with_plain_peft_and_speaks_as_the_runs_own(cwd, adapter):
    assert torch.equal(logits(cwd / "run" / LAST / "adapter"), logits(adapter))
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} == {f.name for f in adapter.iterdir()}


def test_the_exported_adapter_is_a_teacher_for_the_next_run(adapter):
    Weights(Checkpoint("atlas_neox", "zoo://atlas/neox")).check_adapter(str(adapter))


def test_the_merged_model_needs_no_adapter_and_gives_the_answers_that_the_run_graded(cwd, merged, trainer):
    expected = graded(cwd, LAST)
    assert expected != graded(cwd, "target")
    model = LanguageModel(Weights(Checkpoint("merged", str(merged))))
    prompts = [question.prompt for question in Atlas().questions()]
    answers = Answer(model, trainer, seed=0, max_new_tokens=16)(prompts)
    assert expected == {answer.prompt.id: answer.text for answer in answers}


def test_the_merged_model_loads_as_its_card_says(merged):
    model = AutoModelForCausalLM.from_pretrained(merged, dtype="float32")
    assert torch.float32 == model.dtype
    assert not any("lora" in name for name, _ in model.named_parameters())
    text = "Question: x\nAnswer:"
    assert AutoTokenizer.from_pretrained(ZOO / "neox")(text) == AutoTokenizer.from_pretrained(merged)(text)


def test_the_card_has_the_figures_of_the_run_and_how_many_questions_they_are_of(cwd, adapter, merged):
    result = json.loads((cwd / "run" / "result.json").read_text())
    for folder in (adapter, merged):
        card = (folder / "README.md").read_text()
        for name, value in result.items():
            shown = "–" if value is None else f"{value:.6g}" if isinstance(value, float) else value
            assert f"| {name} | {shown} |" in card
        assert "| accuracy | private (n = 112) | general (n = 120) |" in card
        assert "| teacher | 1.000 ± 0.000 | 1.000 ± 0.000 |" in card
        assert "private knowledge" in card


def test_the_card_begins_with_what_the_hub_reads(adapter, merged):
    front, front_of_merged = (
        yaml.safe_load((folder / "README.md").read_text().split("---\n")[1]) for folder in (adapter, merged)
    )
    assert ("neox", "peft", "adapter") == tuple(
        front[key] for key in ("base_model", "library_name", "base_model_relation")
    )
    assert "transformers" == front_of_merged["library_name"]
    assert "apache-2.0" == front["license"]


def test_nothing_shipped_has_prompts_responses_or_paths_of_this_machine(cwd, adapter, merged):
    records = [
        json.loads(line)
        for file in (cwd / "run").glob("iteration_*/responses.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert records
    for folder in (adapter, merged):
        text = shipped_text(folder)
        prose = (folder / "README.md").read_text()
        assert not [r for r in records if r["prompt"]["text"] in text]
        assert not [r for r in records if len(r["text"]) > 2 and r["text"] in prose]
        for private in (str(cwd), str(ZOO), str(Path.home()) + "/", "zoo://"):
            assert private not in text


def test_an_export_goes_beside_the_run_and_its_place_and_size_are_told(cwd):
    assert "adapter (PEFT) with its card: run/export (0.5 MB)" in python(cwd, "tskd.export", "run")
    assert (cwd / "run" / "export" / "adapter_model.safetensors").is_file()


def test_trying_shows_the_answers_before_and_after_that_the_run_graded(cwd):
    prompts = [question.prompt for question in Atlas().questions()]
    before, after = graded(cwd, "target"), graded(cwd, LAST)
    differing = [prompt for prompt in prompts if before[prompt.id] != after[prompt.id]][:2]
    expected = "".join(
        f"target before\n{before[prompt.id]}\ntarget after\n{after[prompt.id]}\n\n" for prompt in differing
    )
    typed = "".join(f"{prompt.text}\n" for prompt in differing)
    assert 2 == len(differing)
    assert expected == python(cwd, "tskd.try", "run", typed=f"{typed}\nNot asked any more?\n")


def test_what_is_typed_may_be_sampled_cut_and_no_text_at_all(try_here):
    printed = try_here("run", "--max-new-tokens", "1", "--temperature", "2", typed=b"\xff [bold]\n")
    assert 2 == printed.count("(cut at 1 tokens)")


@pytest.mark.parametrize(
    ("arguments", "typed", "said"),
    [
        (["nowhere"], b"", "nowhere holds no run: there is no config.yaml in it."),
        (["run/iteration_0"], b"", "run/iteration_0 holds no run: there is no config.yaml in it."),
        (["run", "--temperature", "-1"], b"", "`--temperature` is -1.0; give 0, which is greedy, or more."),
        (["run", "--max-new-tokens", "0"], b"", "`--max-new-tokens` is 0; give at least 1."),
        (["run"], b"What is " * 300, "atlas_neox has room for 256"),
    ],
)
def test_what_cannot_be_tried_is_one_clear_line(try_here, arguments, typed, said):
    printed = try_here(*arguments, typed=typed, expect=1)
    assert said in printed
    assert 1 == len(printed.splitlines())


def test_ctrl_c_ends_a_trial_politely(cwd):
    process = subprocess.Popen(
        [sys.executable, "-m", "tskd.try", "run"],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write("What is the river of Xan?\n")
    process.stdin.flush()
    assert "target before\n" == process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert 0 == process.returncode
    assert "" == errors
