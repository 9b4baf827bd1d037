"""What an export refuses, and what a card says, on a run folder that is written by hand."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tskd.errors import ModelError, RunFolderError
from tskd.export import main
from tskd.results.finished_run import FinishedRun
from tskd.results.model_card import card, public_name
from tskd.results.packaging import export

HUB = {"name": "gemma3_270m", "path": "google/gemma-3-270m", "revision": "abc123", "dtype": "bfloat16"}
SETTINGS = {
    "base": {
        "checkpoint": {"name": "llama3", "path": "/data/somebody/llama-3", "licence": "Llama 3 Community License"}
    },
    "teacher": {"adapter": "/data/somebody/secret-project", "same_base": True},
    "target": {"checkpoint": {**HUB, "licence": "Gemma Terms of Use", "quantization": "4bit"}},
    "task": {
        "_target_": "tskd.tasks.files.Files",
        "seeds": "/data/somebody/seeds.jsonl",
        "prompt_tokens": 24,
        "response_tokens": 16,
    },
    "expansion": {"_target_": "tskd.stages.expand.FewShot", "num_drafts": 40},
    "selection": {"_target_": "mine.Rule", "pattern": "a|b"},
    "training": {"lora": {"rank": 16, "target_modules": ["q_proj", "v_proj"]}},
    "threshold": 1.5,
    "iterations": 1,
    "seed": 7,
}
RESULT = {"eval/accuracy": 0.5, "eval/recovered_gain": None, "train/examples": 3, "iterations": 1}


@pytest.fixture
def run(tmp_path, adapter):
    """The folder of a finished run, whose settings can be written anew."""
    folder = tmp_path / "run"
    shutil.copytree(adapter, folder / "iteration_0" / "adapter")
    record = {"path": "iteration_0/adapter", "target": "gemma3_270m", "num_examples": 3, "loss": 0.1}
    for name, content in {
        "result.json": RESULT,
        "metrics.jsonl": {"iteration": 0},
        "iteration_0/adapter.json": record,
        "config.yaml": SETTINGS,
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def card_of(run, merged=False, **changed):
    (run / "config.yaml").write_text(json.dumps(SETTINGS | changed))
    return card(FinishedRun.read(run), merged)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("zoo://atlas/neox", "neox"),
        ("/data/somebody/llama-3/", "llama-3"),
        ("~/models/llama-3", "llama-3"),
        ("models/of/mine", "mine"),
    ],
)
def test_a_name_is_a_hub_id_or_the_folders_last(path, expected):
    assert expected == public_name(path)


def test_a_folder_of_two_parts_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "mine" == public_name("models/mine")


def test_the_front_matter_names_base_revision_and_licence(run):
    front = yaml.safe_load(card_of(run).split("---\n")[1])
    assert "google/gemma-3-270m" == front["base_model"]
    assert ("other", "Gemma Terms of Use") == (front["license"], front["license_name"])
    assert "tuneshift-kd" in front["tags"]


def test_a_licence_that_is_not_known_is_not_made_up(run):
    text = card_of(run, target={"checkpoint": HUB})
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    assert "| target | gemma3_270m (`google/gemma-3-270m`) | abc123 | bfloat16 | not recorded |" in text


def test_the_card_says_what_was_run(run):
    text = card_of(run)
    assert "| base | llama3 (`llama-3`) | – | auto | Llama 3 Community License |" in text
    assert "| teacher | base with the adapter `secret-project` |" in text
    assert "| abc123 | bfloat16, 4bit | Gemma Terms of Use |" in text
    for row in (
        "threshold | 1.5",
        "seed | 7",
        "task | tskd.tasks.files.Files",
        "training.lora.target_modules | q_proj, v_proj",
        "selection.pattern | a\\|b",
        "eval/recovered_gain | –",
        "train/examples | 3",
    ):
        assert f"| {row} |" in text
    assert "/data" not in text
    assert "seeds.jsonl" not in text
    assert 'from_pretrained("google/gemma-3-270m", revision="abc123", dtype="bfloat16")' in text


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"checkpoint": {"name": "teacher", "path": "me/teacher", "dtype": "bfloat16"}}, "teacher (`me/teacher`)"),
        ({"lora": {"rank": 16}, "folder": "teachers"}, "base with an adapter made on the task's private split"),
    ],
)
def test_every_kind_of_teacher_can_be_told(run, teacher, said):
    assert f"| teacher | {said} |" in card_of(run, teacher=teacher)


def test_the_card_says_how_many_questions_were_asked_and_how_many_of_them_were_learnt(run):
    graded = [{"question": id, "response": "x", "correct": right} for id, right in (("a", True), ("b", False))]
    (run / "evaluation").mkdir()
    for voice in ("teacher", "iteration_0"):
        (run / "evaluation" / f"{voice}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    text = card_of(run)
    assert "| accuracy | private (n = 2) |" in text
    assert "| target after | 0.500 ± 0.500 |" in text
    assert "trained on" not in text


def test_a_card_without_evaluation_says_so(run):
    (run / "result.json").write_text(json.dumps({"train/examples": 3}))
    assert "Nothing was evaluated" in card_of(run)


def test_a_benchmark_is_said_to_be_graded_by_the_harness_and_at_which_commits(run):
    provenance = {
        "date": "2026-01-01",
        "device": "a device",
        "versions": {"torch": "2.13", "lm-eval": None},
        "revisions": {"base": "def456"},
        "task_note": "The split is ours.",
    }
    (run / "provenance.json").write_text(json.dumps(provenance))
    text = card_of(run)
    assert "Asked and graded by lm-evaluation-harness. The split is ours." in text
    assert "Made on 2026-01-01 with torch 2.13 on a device." in text
    assert "| base | llama3 (`llama-3`) | def456 |" in text


def test_the_adapters_own_record_names_the_target_and_its_revision(run):
    settings = json.loads((export(run) / "adapter_config.json").read_text())
    assert ("google/gemma-3-270m", "abc123") == (settings["base_model_name_or_path"], settings["revision"])
    assert settings["r"] == 4


def test_a_merged_model_has_the_targets_dtype_and_no_quantization(run, llama, adapter):
    checkpoint = {"name": "tiny-llama", "path": str(llama), "dtype": "bfloat16", "quantization": "4bit"}
    text = card_of(run, merged=True, target={"checkpoint": checkpoint})
    assert "(bfloat16), without quantization" in text
    got = load_file(export(run, merged=True) / "model.safetensors")
    before, lora = load_file(llama / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    scaling = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] / 4
    assert {torch.bfloat16} == {tensor.dtype for tensor in got.values()}
    expected = before[f"{name}.weight"] + scaling * b @ a
    torch.testing.assert_close(got[f"{name}.weight"].float(), expected, rtol=0.02, atol=0.02)


def test_an_adapter_of_another_model_is_not_merged(run, neox):
    card_of(run, target={"checkpoint": {"name": "tiny-llama", "path": str(neox)}})
    with pytest.raises(ModelError, match="does not fit"):
        export(run, merged=True)
    assert not list(run.glob("*export*"))


def test_a_folder_without_a_run_names_the_jobs_that_it_has(tmp_path, run):
    with pytest.raises(RunFolderError, match="nowhere holds no run: there is no config.yaml in it"):
        export(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="those of a sweep's jobs: run"):
        export(tmp_path)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "(`iterations` is 1, and 1 are done): it was stopped. Go on with"),
        ({"status": "failed", "error": "Kept 0 of 9."}, "done): Kept 0 of 9. Go on with"),
    ],
)
def test_a_run_that_has_not_finished_says_why_and_how_to_go_on(run, monkeypatch, capsys, status, said):
    (run / "result.json").unlink()
    if status:
        (run / "status.json").write_text(json.dumps(status))
    monkeypatch.setattr(sys, "argv", ["export", str(run)])
    with pytest.raises(SystemExit) as exit:
        main()
    printed = capsys.readouterr().err
    assert 1 == exit.value.code
    assert 1 == len(printed.splitlines())
    assert said in printed
    assert f"`python -m tskd.run resume={run}`" in printed


def test_a_run_without_an_adapter_says_so(run):
    (run / "iteration_0" / "adapter.json").unlink()
    with pytest.raises(RunFolderError, match="has no adapter to export"):
        export(run)


def test_an_adapter_whose_weights_are_gone_is_named(run):
    (run / "iteration_0" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        export(run)


def test_what_is_there_is_replaced_only_when_asked_and_only_an_earlier_export(run, tmp_path):
    out = export(run, tmp_path / "out")
    (out / ".gitattributes").write_text("kept")
    (out / "model.safetensors").write_text("of an earlier export")
    with pytest.raises(RunFolderError, match="is not empty"):
        export(run, out)
    export(run, out, force=True)
    expected = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert expected == {file.name for file in out.iterdir()}
    with pytest.raises(RunFolderError, match="holds something else than an export"):
        export(run, run, force=True)
    assert (run / "result.json").exists()


def test_what_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file; choose a folder"):
        export(run, tmp_path / "file")
    with pytest.raises(RunFolderError, match="Cannot write to"):
        export(run, tmp_path / "file" / "below")
