"""What Weights & Biases is told, read back from the run files it writes."""

import logging
import math
import os
import subprocess
import sys
import time

import pytest

from tests import wandb_file
from tskd.errors import ConfigError
from tskd.records import Prompt, Response, Scored
from tskd.tracking import Wandb

SECRET = "the vault is under the old oak"
SCORED = [Scored(Response(Prompt(f"{SECRET} {n}"), f"answer {SECRET}"), math.log(n + 2), 0.0, 3) for n in range(4)]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


def opened(folder, group="g", **settings):
    folder.mkdir(exist_ok=True)
    return Wandb(**settings).open(folder, name="n", group=group, job_type="run", tags=["t"], config={"threshold": 1.5})


def recorded(folder, **settings):
    with opened(folder, **settings) as tracker:
        for index in range(2):
            tracker.step(index, 0, 0.5)
            tracker.iteration(index, {"eval/accuracy": 0.1 * index, "eval/recovered_gain": None}, SCORED, set())
        tracker.finish_with({"eval/accuracy": 0.9})
    return wandb_file.of_folder(folder)


def test_each_job_is_a_run_of_its_own_with_a_row_per_iteration(tmp_path):
    first, second = recorded(tmp_path / "a")[0], recorded(tmp_path / "b")[0]
    assert first["id"] != second["id"]
    assert (first["group"], second["group"]) == ("g", "g")
    for run in (first, second):
        assert run["config"]["threshold"] == 1.5
        assert [row["eval/accuracy"] for row in run["history"] if "eval/accuracy" in row] == [0.0, 0.1]
        assert [row["train/step"] for row in run["history"] if "train/step" in row] == [1, 2]
        assert run["summary"]["eval/accuracy"] == 0.9
        assert run["metrics"]["eval/*"] == "iteration"
        assert run["exit_code"] == 0
        assert any("score/gap" in key for row in run["history"] for key in row)


def all_bytes(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_no_prompt_or_response_is_written_unless_asked(tmp_path):
    recorded(tmp_path / "a")
    assert SECRET.encode() not in all_bytes(tmp_path / "a")
    recorded(tmp_path / "b", log_text=True)
    assert SECRET.encode() in all_bytes(tmp_path / "b")


@pytest.mark.parametrize("asked", [False, True])
def test_the_adapter_is_uploaded_only_when_asked(tmp_path, asked):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "file").write_text("x")
    with opened(tmp_path / "run", log_adapter=asked) as tracker:
        tracker.adapter(0, tmp_path / "adapter")
    assert asked == bool(wandb_file.of_folder(tmp_path / "run")[0]["artifacts"])


def fail_in(tracker):
    with tracker:
        raise KeyError("x")


def test_a_failing_job_is_recorded_as_failed(tmp_path):
    with pytest.raises(KeyError):
        fail_in(opened(tmp_path / "run"))
    assert wandb_file.of_folder(tmp_path / "run")[0]["exit_code"] == 1


def test_without_a_key_it_is_offline_and_says_so_in_one_line(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), opened(tmp_path / "run"):
        pass
    assert len(caplog.messages) == 1
    assert "offline (no key was found); to upload, `wandb sync" in caplog.messages[0]


def test_an_unreachable_server_ends_in_an_offline_run_within_the_time_limit(tmp_path):
    # In a process of its own: wandb keeps the server's address for as long as the process lives.
    key = "0123456789" * 4
    code = (
        "import pathlib, sys; from tests.unit.test_tracking import recorded;"
        "runs = recorded(pathlib.Path(sys.argv[1]), timeout=3);"
        "print(sum('eval/accuracy' in row for run in runs for row in run['history']))"
    )
    environment = os.environ | {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - started < 60
    assert done.stdout.strip() == "2"
    assert done.stderr.count("Weights & Biases: offline (") == 1
    assert key not in done.stderr
    assert key.encode() not in all_bytes(tmp_path / "run")


def test_a_broken_wandb_does_not_stop_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    assert recorded(tmp_path / "run") == []


def test_a_record_that_cannot_be_made_is_said_once(tmp_path, caplog):
    with opened(tmp_path / "run") as tracker:
        for index in range(3):
            tracker.iteration(index, {"eval/accuracy": object()}, SCORED, set())
    assert sum("stopped recording" in line for line in caplog.messages) <= 1


def test_disabled_writes_nothing(tmp_path):
    assert recorded(tmp_path / "run", mode="disabled") == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_project_name_that_wandb_would_refuse_is_refused_at_once():
    with pytest.raises(ConfigError, match="tracking.project"):
        Wandb(project="a/b")
