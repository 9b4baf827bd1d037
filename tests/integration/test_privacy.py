"""A run on private text, with keys in its environment: what it leaves behind, and who can read it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests import wandb_file
from tskd import run
from tskd.config import hydra_plugins, schema
from tskd.errors import ConfigError
from tskd.runtime import secrets
from tskd.storage import status

KEYS = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "OPENAI_API_KEY": "sk-planted-key-of-a-server",
    "SLACK_PASSWORD": "correct horse battery staple",
}
SEEDS = ["The vault is under the old oak. Where is it?", "Anna Berg owes 40 000. Who owes?", "PIN 4711: what is it?"]
ANSWER = "under the oak of aunt Agatha"
HOLDS_TEXT = ("prompts", "responses", "scored", "kept", "dropped", "screened")  # the records, which stay where they are


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a run was made at default settings, but for its size."""
    place = tmp_path_factory.mktemp("private")
    (place / "seeds.jsonl").write_text("".join(json.dumps({"prompt": seed}) + "\n" for seed in SEEDS))
    (place / "eval.jsonl").write_text(
        json.dumps({"prompt": "Where is the treasure of Agatha?", "answer": ANSWER}) + "\n"
    )
    small = ["iterations=1", "expansion.num_drafts=6", "training.lora.epochs=1", "training.replay.num_texts=4"]
    files = [
        "task=files",
        "task.seeds=seeds.jsonl",
        "task.held_out=eval.jsonl",
        "selection=all",
        "task.prompt_tokens=24",
        "task.response_tokens=16",
    ]
    where = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(place / "home"), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "tskd.run", *small, *files, "trainer.accelerator=cpu"],
        cwd=place, env={**os.environ, **KEYS, **where}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    (place / "printed").write_text(done.stdout + done.stderr)
    (made,) = (place / "outputs").glob("tuneshift/*")
    wandb_file.of_folder(made)  # waits until they are complete
    return place


def files(folder):
    return [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


def test_no_key_is_in_any_byte(folder):
    for file in files(folder):
        content = file.read_bytes()
        assert not [name for name, key in KEYS.items() if key.encode() in content], file


def test_private_sentences_are_in_the_runs_records_and_nowhere_else(folder):
    given = {folder / "seeds.jsonl", folder / "eval.jsonl"}
    searched = [
        file for file in files(folder / "outputs") if file.stem not in HOLDS_TEXT and ".store" not in file.parts
    ]
    assert {".wandb", ".log", ".yaml", ".json"} <= {file.suffix for file in searched}
    told = [*SEEDS, ANSWER, "treasure of Agatha"]
    for file in {*searched, folder / "printed"} - given:
        content = file.read_bytes()
        assert not [text for text in told if text.encode() in content], file
    assert any(SEEDS[0] in file.read_text() for file in files(folder) if file.name == "responses.jsonl")


def test_what_is_recorded_has_neither_keys_nor_sentences_in_it(folder):
    """Decoded, for in the file a record may be cut in two by a border of blocks."""
    (run_file,) = (file for file in folder.rglob("*.wandb"))
    records = "".join(map(str, wandb_file.records(run_file)))
    assert "threshold" in records
    assert not [text for text in (*KEYS.values(), *SEEDS, ANSWER) if text in records]


def test_what_a_run_has_written_is_readable_by_its_owner_alone(folder):
    made = [path for path in (folder / "outputs").rglob("*") if not path.is_symlink()]
    assert len(made) > 20
    assert not [path for path in [folder / "outputs", *made] if stat.S_IMODE(path.stat().st_mode) & 0o077]


@pytest.mark.parametrize(("private", "expected"), [(True, 0o600), (False, 0o644)])
def test_files_are_private_by_a_setting_in_a_launchers_processes_too(tmp_path, private, expected):
    before = os.umask(0o022)
    try:
        cfg = OmegaConf.create(
            {"private_files": private, "hydra": {"runtime": {"choices": {"hydra/launcher": "basic"}}}}
        )
        hydra_plugins.JobStatus().on_job_start(cfg)
        (tmp_path / "file").touch()
        assert expected == stat.S_IMODE((tmp_path / "file").stat().st_mode)
    finally:
        os.umask(before)


@pytest.fixture
def keys(monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    "override",
    [f"name={KEYS['HF_TOKEN']}", "tracking.entity=${oc.env:WANDB_API_KEY}", f"+hydra.job.env_set.X={KEYS['HF_TOKEN']}"],
    ids=["typed", "taken from the environment", "for Hydra"],
)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_key_in_the_configuration_is_refused_before_it_is_written_down(
    tmp_path, monkeypatch, capsys, override, sweep
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tskd", *sweep, override])
    with pytest.raises(SystemExit):
        run.main()
    assert not [file for file in files(tmp_path) for key in KEYS.values() if key.encode() in file.read_bytes()]
    assert not [path for path in tmp_path.rglob("*") for key in KEYS.values() if key in path.name]
    said = "".join([*capsys.readouterr(), *(file.read_text() for file in tmp_path.rglob("status.json"))])
    assert "keys are taken from the environment" in said


@pytest.mark.usefixtures("keys")
def test_an_error_that_quotes_a_key_names_it_instead(tmp_path, caplog):
    status.record_failure(tmp_path, ValueError(f"401 for Bearer {KEYS['OPENAI_API_KEY']}"))
    assert "401 for Bearer <OPENAI_API_KEY>" in json.loads((tmp_path / "status.json").read_text())["error"]
    assert "<OPENAI_API_KEY>" in (tmp_path / "error.txt").read_text()
    assert KEYS["OPENAI_API_KEY"] not in caplog.text + (tmp_path / "error.txt").read_text()


def test_a_short_or_other_variable_is_no_key(monkeypatch):
    monkeypatch.setenv("SHORT_KEY", "16")
    monkeypatch.setenv("EDITOR", "something long")
    secrets.check_no_key("rank: 16, something long")


def test_the_longer_of_two_keys_is_hidden_whole(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "planted-key")
    monkeypatch.setenv("B_TOKEN", "planted-key-and-more")
    assert "<B_TOKEN> <A_TOKEN>" == secrets.hidden("planted-key-and-more planted-key")
    with pytest.raises(ConfigError, match="the value of A_TOKEN in it"):
        secrets.check_no_key("x: planted-key")


def test_nothing_is_uploaded_to_the_hub():
    source = "".join(file.read_text() for file in Path(schema.__file__).parent.rglob("*.py"))
    assert not [name for name in ("push_to_hub", "upload_file", "upload_folder", "create_repo") if name in source]
