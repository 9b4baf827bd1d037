"""All that is wrong with a configuration is said at once, and what is right is not."""

import sys
from dataclasses import fields

import pytest
import torch
from huggingface_hub import constants
from hydra import compose, initialize_config_dir

from tests import tiny
from tskd import check
from tskd.config import hydra_plugins, inspection, saved, schema
from tskd.config.build import attempt
from tskd.config.inspection import findings

SMALL = [
    "iterations=1",
    "expansion.num_drafts=8",
    "task.epochs=1",
    "training.replay.num_texts=2",
    "trainer.accelerator=cpu",
    "tracking.mode=disabled",
    "store=off",
]


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        return saved.resolved(compose("config", [*SMALL, *overrides]))


def found(tmp_path, *overrides):
    return findings(composed(*overrides), tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))


def test_where_nothing_is_wrong_nothing_is_said(tmp_path):
    assert ([], []) == (found(tmp_path).problems, found(tmp_path).notes)


WRONG = {
    "iterations=0": "`iterations` is 0",
    "threshold=nan": "`threshold` is nan",
    "expansion.num_drafts=many": "`expansion.num_drafts` is 'many'",
    "expansion.writer=nobody": "`expansion.writer` is 'nobody'",
    "training.lora.rank=0": "`training.lora.rank` is 0",
    "training.lora.epochs=-1": "`training.lora.epochs` is -1",
    "tracking.project=a/b": "`tracking.project` is 'a/b'",
    "trainer.precision=bf16": "`trainer.precision` is 'bf16'",
    "target.checkpoint.dtype=int3": "has dtype 'int3'",
    "task._target_=stranger.Task": "`task._target_` names stranger.Task",
    "drop=[nothing]": "`drop` is ['nothing']",
    "max_hours=0": "`max_hours` is 0",
    "stop.coverage=2": "`stop.coverage` is 2",
    "answer.temperature=-1": "`answer.temperature` is -1",
}


# A wrong value of each setting at the root: building it notes the error, and goes on.
WRONG_ROOT = {field.name: {"wrong": "value"} for field in fields(schema.Schema)} | {"store": 3, "allow": "*"}


@pytest.mark.parametrize(("name", "value"), WRONG_ROOT.items())
def test_everything_that_can_be_set_is_checked_and_the_rest_is_built(tmp_path, name, value):
    made = attempt(composed() | {name: value}, tmp_path)
    assert made.errors
    assert {name} <= made.wrong <= {name, "threshold", "selection", "trainer", "engine"}
    assert any(f"`{name}" in str(line) for error in made.errors for line in error.args)
    assert vars(made.run.settings)[name] != value


def test_a_configuration_is_built_once(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(inspection, "attempt", lambda *args, **kwargs: built.append(0) or attempt(*args, **kwargs))
    monkeypatch.setattr("tskd.config.cost_estimate.build", lambda *_: pytest.fail("built again"))
    assert [] == found(tmp_path).problems
    assert found(tmp_path, "iterations=0", "stop.coverage=2").problems
    assert [0, 0] == built


@pytest.mark.parametrize("right", ["iterations=auto", "training=diff_vector target=atlas_llama"])
def test_what_is_right_is_not_said(tmp_path, right):
    assert not found(tmp_path, *right.split()).problems


@pytest.mark.parametrize(("override", "said"), WRONG.items())
def test_each_problem_is_a_line(tmp_path, override, said):
    (problem,) = found(tmp_path, override).problems
    assert said in problem
    assert problem.endswith(".")
    assert "\n" not in problem


def test_all_of_them_are_said_at_once(tmp_path):
    pairs = {override: said for override, said in WRONG.items() if not override.startswith("expansion.writer")}
    problems = found(tmp_path, *pairs).problems
    assert len(pairs) == len(problems)
    for said in pairs.values():
        assert any(said in problem for problem in problems)


def test_a_type_that_this_cpu_has_no_instructions_for_is_noted_with_what_is_faster(tmp_path, monkeypatch):
    halves = ("base.checkpoint.dtype=bfloat16", "target.checkpoint.dtype=float16", "trainer.accelerator=cpu")
    for has_instructions, said in ((True, 0), (False, 1)):
        for half in ("bf16", "fp16"):
            ask = f"_is_mkldnn_{half}_supported"
            monkeypatch.setattr(torch.ops.mkldnn, ask, lambda has=has_instructions: has)
        notes = [note for note in found(tmp_path, *halves).notes if "instructions" in note]
        assert said == len(notes)
        assert not [note for note in found(tmp_path).notes if "instructions" in note]  # all is float32 there
    (note,) = notes
    assert "no instructions for bfloat16 and float16" in note
    assert "`base.checkpoint.dtype=float32 target.checkpoint.dtype=float32` is faster, in twice the memory." in note


def test_seeds_and_questions_both_say_what_is_wrong_with_them(tmp_path):
    (tmp_path / "seeds.jsonl").write_text("{")
    task = ("task=files", f"task.seeds={tmp_path / 'seeds.jsonl'}", f"task.held_out={tmp_path / 'none.jsonl'}")
    first, second = found(tmp_path, *task, "teacher=finetuned").problems
    assert "seeds.jsonl, line 1: not JSON" in first
    assert "There is no file" in second


def test_models_are_checked_against_each_other_and_the_texts(tmp_path, llama, adapter):
    (tmp_path / "seeds.txt").write_text("word " * 300 + "\nanother\n")
    task = ("task=files", f"task.seeds={tmp_path / 'seeds.txt'}", "task.prompt_tokens=9", "task.response_tokens=9")
    problems = found(tmp_path, *task, "teacher=adapter", f"teacher.adapter={adapter}").problems
    assert any("Adapter" in problem and "was made for" in problem for problem in problems)
    assert any("The longest seed, with a response of 9 tokens, needs" in problem for problem in problems)
    assert len(problems) == len(set(problems))


def test_an_adapter_is_checked_though_the_target_is_missing(tmp_path, adapter):
    problems = found(
        tmp_path, "teacher=adapter", f"teacher.adapter={adapter}", "target.checkpoint.path=/nowhere"
    ).problems
    assert 2 == len(problems)
    assert "There is no folder /nowhere" in problems[0]
    assert "was made for" in problems[1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors."),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights can run"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors is damaged"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
            "model.safetensors is damaged",
        ),
        (
            lambda folder: (
                (folder / "model.safetensors").unlink(),
                (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "shard-2.safetensors"}}'),
            ),
            "has no shard-2.safetensors",
        ),
        (
            lambda folder: (
                (folder / "model.safetensors").unlink(),
                (folder / "model.safetensors.index.json").write_text('{"weight_map": []}'),
            ),
            "index.json is damaged",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    ],
    ids=["none", "pickled", "nonsense", "cut off", "a shard missing", "a damaged index", "configuration"],
)
def test_damaged_weights_are_found_without_reading_them(tmp_path, damage, said):
    folder = tiny.save_model(tmp_path / "model", "neox")
    damage(folder)
    (problem,) = found(tmp_path, f"target.checkpoint.path={folder}").problems
    assert said in problem


def test_what_the_hub_has_is_noted_and_where_it_cannot_be_had_a_problem(tmp_path, monkeypatch):
    away = ("target.checkpoint.path=owner/name", "target.checkpoint.gated=true")
    assert "HF_HUB_OFFLINE is set" in found(tmp_path, *away).problems[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(inspection, "get_token", lambda: None)
    assert "which is gated, and there is no token" in found(tmp_path, *away).problems[0]
    monkeypatch.setattr(inspection, "get_token", lambda: "token")
    fetched = found(tmp_path, *away)
    assert [] == fetched.problems
    assert "`target` needs owner/name, which is not on this machine; a run fetches it" in fetched.notes[0]
    assert constants.HF_HUB_OFFLINE is False


def test_memory_and_disk_that_do_not_suffice_are_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "machine", lambda _: ("this machine", 10**6))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**5}))
    memory, disk, _ = found(tmp_path).problems
    assert "of memory, and this machine has 1.0 MB; lower `trainer.max_batch_tokens`" in memory
    assert f"`hydra.run.dir` is {tmp_path}, where 0.1 MB are free, and the adapters take about" in disk


def test_a_place_that_cannot_be_written_to_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    (problem,) = findings(composed(), tmp_path / "file" / "outputs").problems
    assert "cannot be written to; choose another." in problem


def test_tracking_says_where_it_would_not_do_what_was_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("tskd.tracking.wandb._has_key", lambda *_: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (problem,) = found(tmp_path, "tracking.mode=online").problems
    assert "`tracking.mode` is online, and no key was found for" in problem
    asked = found(tmp_path, "tracking.mode=auto", "tracking.log_text=true")
    assert [] == asked.problems
    assert "W&B is offline: no key was found" in asked.notes[0]
    assert "Private content goes to W&B: `tracking.log_text`." in asked.notes


def test_an_adapter_that_cannot_be_made_is_a_problem(tmp_path):
    (problem,) = found(tmp_path, "training.lora.target_modules=nowhere").problems
    assert "LoRA cannot be put on 'atlas_neox'" in problem


def test_a_device_that_is_not_there_is_a_problem(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so that nothing is wrong")
    (problem,) = found(tmp_path, "trainer.accelerator=gpu").problems
    assert "`trainer.accelerator` is 'gpu'" in problem


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    def command(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(hydra_plugins, "started", [])
        monkeypatch.setattr(sys, "argv", ["check", *arguments, *SMALL])
        try:
            check.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return command


def test_the_command_says_it_a_line_each_tells_by_its_code_and_leaves_nothing(command, tmp_path):
    assert (0, "Check  nothing wrong\n", "") == command()
    code, out, err = command("task=files", "teacher=adapter", "seed=0", "threshold=nan")
    assert (1, "") == (code, err)
    said = [line for line in out.splitlines() if line.startswith("  problem")]
    assert "  problem    `task.seeds` is missing; set it on the command line." == said[0]
    assert any("`teacher.adapter` is missing" in line for line in said)
    assert any("`threshold` is nan" in line for line in said)
    assert [] == list(tmp_path.iterdir())


def test_each_job_of_a_sweep_is_checked(command):
    code, out, _ = command("-m", "threshold=nan,1,inf")
    assert (1, 3, 1) == (code, out.count("Check  "), out.count("nothing wrong"))
    assert "`threshold` is inf" in out


def test_its_lines_are_plain_text(command):
    (_, out, _) = command("name='[bold]x'")
    assert "`name` is '[bold]x'" in out
