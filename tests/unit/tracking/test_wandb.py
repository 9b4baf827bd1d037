"""What Weights & Biases is told, read back from the run files it writes."""

import json
import logging
import math
import os
import pty
import socket
import subprocess
import sys
import time

import pytest

from tests import wandb_file
from tskd.errors import ConfigError
from tskd.records import Prompt, Response, Scored
from tskd.tracking.wandb import Wandb, _has_key

SECRET = "the vault is under the old oak"
KEY = "0123456789" * 4


def scored(*base_nlls):
    return [
        Scored(Response(Prompt(f"{SECRET} {n}"), f"answer {SECRET}"), nll, 0.0, 3) for n, nll in enumerate(base_nlls)
    ]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def opened(folder, group="g", **settings):
    folder.mkdir(exist_ok=True)
    return Wandb(**settings).open(
        folder, name="n", group=group, job_type="run", tags=["t", " t", "", "u" * 70], config={"x": 1.5}
    )


def recorded(folder, examples=(), **settings):
    with opened(folder, **settings) as tracker:
        for index in range(2):
            for step in range(2):
                tracker.step(index, step, 0.5)
            row = {"eval/accuracy": 0.1 * index, "eval/recovered_gain": None}
            tracker.iteration(index, row, examples or scored(1.0, 2.0, 3.0), set())
        tracker.finish_with({"eval/accuracy": 0.9, "eval/recovered_gain": None})
    return wandb_file.of_folder(folder)


def all_bytes(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def said(caplog):
    """Our own lines: pytest also collects wandb's, which go to a file of the run and to nobody else."""
    return [record for record in caplog.records if record.name == "tskd.tracking.wandb"]


def column(run, name):
    return [row[name] for row in run["history"] if name in row]


def test_each_job_is_a_run_of_its_own_with_a_row_per_iteration(tmp_path):
    first, second = recorded(tmp_path / "a")[0], recorded(tmp_path / "b")[0]
    assert first["id"] != second["id"]
    for run in (first, second):
        assert (run["group"], run["name"], run["job_type"], run["tags"]) == ("g", "n", "run", ["t", "u" * 64])
        assert run["config"]["x"] == 1.5
        assert column(run, "eval/accuracy") == [0.0, 0.1]
        assert [row["iteration"] for row in run["history"] if "eval/accuracy" in row] == [0, 1]
        assert column(run, "eval/recovered_gain") == []
        assert run["summary"]["eval/accuracy"] == 0.9
        assert run["exit_code"] == 0


def test_metrics_are_drawn_against_iterations_and_step_losses_against_a_count_that_never_restarts(tmp_path):
    run = recorded(tmp_path / "run")[0]
    assert column(run, "train/step") == [1, 2, 3, 4]
    assert run["metrics"]["train/step_loss"] == "train/step"
    for name in ("prompts/*", "score/*", "select/*", "eval/*", "cost/*", "train/loss", "train/examples"):
        assert run["metrics"][name] == "iteration"


def tell(tracker, iteration, steps, whole=True):
    for step in range(steps):
        tracker.step(iteration, step, 0.5)
    if whole:
        tracker.iteration(iteration, {"eval/accuracy": 0.1 * iteration}, scored(1.0, 2.0), set())


def test_a_continued_job_goes_on_in_its_run_and_tells_no_iteration_twice(tmp_path):
    with opened(tmp_path / "run", "sweep") as tracker:
        tell(tracker, 0, steps=2)
        tell(tracker, 1, steps=1, whole=False)
    time.sleep(1)  # wandb names a run's files by the second
    with opened(tmp_path / "run", "another") as tracker:
        tell(tracker, 0, steps=0)
        tell(tracker, 1, steps=2)
    first, second = wandb_file.of_folder(tmp_path / "run")
    assert first["id"] == second["id"]
    assert {"sweep"} == {first["group"], second["group"]}
    assert ([0.0], [0.1]) == (column(first, "eval/accuracy"), column(second, "eval/accuracy"))
    assert ([1, 2, 3], [3, 4]) == (column(first, "train/step"), column(second, "train/step"))


def test_what_could_not_be_told_is_told_when_the_job_is_continued(tmp_path, monkeypatch):
    with monkeypatch.context() as broken, opened(tmp_path / "run") as tracker:
        broken.setattr("wandb.Run.log", lambda *_, **__: 1 / 0)
        tell(tracker, 0, steps=2)
    time.sleep(1)
    with opened(tmp_path / "run") as tracker:
        tell(tracker, 0, steps=0)
    first, second = wandb_file.of_folder(tmp_path / "run")
    assert ([], [0.0]) == (column(first, "eval/accuracy"), column(second, "eval/accuracy"))


def test_online_the_server_is_asked_to_go_on_with_the_run(tmp_path, monkeypatch):
    run_id = recorded(tmp_path / "run", mode="offline")[0]["id"]
    asked = []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("wandb.init", lambda **given: asked.append(given) or 1 / 0)
    opened(tmp_path / "run", mode="online")
    opened(tmp_path / "new", mode="online")
    online = [(given["id"], given["resume"]) for given in asked if given["mode"] == "online"]
    assert [(run_id, "allow"), (None, None)] == online


@pytest.mark.parametrize("content", ["", "{}", '{"run_id": 3}', "[" * 9])
def test_a_note_that_cannot_be_read_begins_a_new_run(tmp_path, content):
    begin(tmp_path / "run", "abcd1234")
    (tmp_path / "run" / "wandb" / "logged.json").write_text(content)
    (run,) = recorded(tmp_path / "run", mode="offline")
    assert run["id"] != "abcd1234"
    assert json.loads((tmp_path / "run" / "wandb" / "logged.json").read_text())["run_id"] == run["id"]


def test_the_histogram_counts_the_finite_gaps(tmp_path):
    run = recorded(tmp_path / "run", examples=scored(1.0, 2.0, 2.0, 800.0, math.nan))[0]
    assert [sum(values) for values in column(run, "score/gap/values")] == [3, 3]


def test_gaps_too_close_for_a_histogram_cost_no_row(tmp_path):
    alike = scored(math.log(11), math.nextafter(math.log(11), 9))
    assert column(recorded(tmp_path / "run", examples=alike)[0], "eval/accuracy") == [0.0, 0.1]


def test_no_prompt_or_response_is_written_unless_asked(tmp_path):
    recorded(tmp_path / "a")
    assert SECRET.encode() not in all_bytes(tmp_path)
    recorded(tmp_path / "b", log_text=True, examples=[*scored(1.0, 800.0, math.nan), *scored(2.0)])
    assert SECRET.encode() in all_bytes(tmp_path / "b")
    assert SECRET.encode() not in all_bytes(tmp_path / "a")


def test_the_machine_is_not_described(tmp_path, monkeypatch):
    names = [name for name in (socket.gethostname(), "name-of-a-machine") if len(name) > 5]  # none is there by chance
    monkeypatch.setattr("socket.gethostname", lambda: "name-of-a-machine")
    monkeypatch.setattr("sys.argv", ["tskd", "--word-of-the-command-line"])
    recorded(tmp_path / "run")
    for told in (*names, "word-of-the-command-line"):
        assert told.encode() not in b"".join(file.read_bytes() for file in tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize("asked", [False, True])
def test_the_adapter_is_uploaded_only_when_asked(tmp_path, asked):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "file").write_text("x")
    with opened(tmp_path / "run", log_adapter=asked) as tracker:
        tracker.adapter(0, tmp_path / "adapter")
    run = wandb_file.of_folder(tmp_path / "run")[0]
    assert ([f"adapter-{run['id']}"] if asked else []) == run["artifacts"]


def fail_in(tracker, error):
    with tracker:
        raise error


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_failing_job_is_recorded_as_failed(tmp_path, error):
    with pytest.raises(error):
        fail_in(opened(tmp_path / "run"), error)
    assert wandb_file.of_folder(tmp_path / "run")[0]["exit_code"] == 1


def test_without_a_key_it_is_offline_and_says_so_in_one_line(tmp_path, caplog, capfd):
    recorded(tmp_path / "run", log_text=True)
    (line,) = [record.getMessage() for record in said(caplog)]
    assert "offline, as no key was found" in line
    assert line.endswith(f"wandb sync {tmp_path / 'run' / 'wandb'}")
    assert tuple(capfd.readouterr()) == ("", "")


def test_offline_as_asked_is_no_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with caplog.at_level(logging.INFO):
        assert len(recorded(tmp_path / "run")) == 1
    assert [record.levelno for record in said(caplog)] == [logging.INFO]


# In a process of its own: wandb keeps the server's address for as long as the process lives.
ELSEWHERE = """
import pathlib, sys
from tests.unit.tracking.test_wandb import recorded
runs = recorded(pathlib.Path(sys.argv[1]), mode=sys.argv[2], timeout=3)
print([run["id"] for run in runs], sum("eval/accuracy" in row for run in runs for row in run["history"]))
"""


def begin(folder, run_id):
    """A folder whose run has begun elsewhere."""
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "logged.json").write_text(json.dumps({"run_id": run_id, "group": "g", "job_type": "run"}))


def elsewhere(folder, mode, **environment):
    begin(folder, "abcd1234")
    command = [sys.executable, "-c", ELSEWHERE, str(folder), mode]
    return subprocess.run(command, env=os.environ | environment, text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("answer", ["refuses", "is silent"])
def test_an_unreachable_server_ends_in_an_offline_run_of_the_same_id_within_the_time_limit(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = 9 if answer == "refuses" else silent.getsockname()[1]
        started = time.monotonic()
        done = elsewhere(tmp_path / "run", "auto", WANDB_API_KEY=KEY, WANDB_BASE_URL=f"http://127.0.0.1:{port}")
        assert time.monotonic() - started < 30
    assert done.stdout.strip() == "['abcd1234'] 2"
    assert len(done.stderr.splitlines()) == 1
    assert "Weights & Biases: offline, as " in done.stderr
    assert KEY not in done.stderr
    assert KEY.encode() not in all_bytes(tmp_path)


def test_online_without_a_key_never_asks_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    begin(tmp_path / "run", "abcd1234")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "run"), "online"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=os.environ, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "['abcd1234'] 2"
    assert b"offline, as no key was found" in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("machine", "server", "found"),
    [
        ("api.wandb.ai", "https://api.wandb.ai", True),
        ("api.wandb.ai", "https://api.forge.coreweave.com", True),
        ("api.forge.coreweave.com", "https://api.forge.coreweave.com", True),
        ("wandb.example.org:8080", "https://wandb.example.org:8080", True),
        ("wandb.example.org", "https://api.forge.coreweave.com", False),
    ],
)
def test_a_netrc_entry_counts_for_the_server_it_names(tmp_path, monkeypatch, machine, server, found):
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert found == _has_key(server, None)


def test_a_broken_wandb_does_not_stop_the_job(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    assert recorded(tmp_path / "run") == []
    assert [line.getMessage() for line in said(caplog)] == ["Weights & Biases is off: division by zero"]


def test_a_record_that_cannot_be_made_is_said_once_and_the_run_still_ends(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("wandb.Run.log", lambda *_, **__: 1 / 0)
    assert [run["exit_code"] for run in recorded(tmp_path / "run", mode="offline")] == [0]
    # What is only told, beside warnings, depends on whether a command has set up logging in this process before.
    (line,) = [record.getMessage() for record in said(caplog) if record.levelno >= logging.WARNING]
    assert line.startswith("Weights & Biases has stopped: division by zero. To upload: wandb sync ")


def test_a_folder_that_cannot_be_written_has_no_run_elsewhere_either(tmp_path, monkeypatch, caplog):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").touch()
    assert recorded(tmp_path / "run") == []
    (line,) = [line.getMessage() for line in said(caplog)]
    assert line.startswith("Weights & Biases is off: ")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_disabled_writes_and_says_nothing(tmp_path, monkeypatch, caplog):
    assert recorded(tmp_path / "a", mode="disabled") == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert recorded(tmp_path / "b") == []
    assert [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir(), *said(caplog)] == []


def test_nothing_is_left_behind_outside_the_folder(tmp_path):
    before = dict(os.environ)
    (tmp_path / "home").mkdir()
    recorded(tmp_path / "run", log_text=True)
    assert before == dict(os.environ)
    assert list((tmp_path / "home").iterdir()) == []


def test_importing_it_does_not_import_wandb():
    subprocess.run(
        [sys.executable, "-c", "import sys, tskd.tracking.wandb; sys.exit('wandb' in sys.modules)"], check=True
    )


@pytest.mark.parametrize("project", ["", "a/b", "a:b", "a" * 129])
def test_a_project_name_that_wandb_would_refuse_is_refused_at_once(project):
    with pytest.raises(ConfigError, match=r"tracking\.project"):
        Wandb(project=project)
