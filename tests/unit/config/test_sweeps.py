"""Which runs and sweeps can go on, what their tables say, and that no two processes work in one folder."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from tskd.config import saved, sweeps
from tskd.config.sweeps import to_go_on_with
from tskd.errors import ConfigError, OutOfTime, RunFolderError
from tskd.storage.status import with_status

SETTINGS = {"threshold": 1.5, "lora": {"rank": 4, "rate": 1e-5}, "max_hours": None}


@pytest.fixture
def run(tmp_path):
    def run(name, status, settings=SETTINGS, age=0):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
        os.utime(folder / "config.yaml", (1e9 - age, 1e9 - age))
        if status:
            (folder / "status.json").write_text(json.dumps({"status": status}))
        return folder

    return run


def test_the_newest_unfinished_run_of_a_configuration_is_found(tmp_path, run):
    assert sweeps.newest_unfinished(tmp_path / "nowhere", SETTINGS) is None
    run("oldest", "failed", age=3)
    killed = run("killed", None, {**SETTINGS, "max_hours": 5}, age=2)
    run("completed", "completed", age=1)
    run("other", "stopped", {**SETTINGS, "lora": {"rank": 8, "rate": 1e-5}})
    (run("damaged", None) / "config.yaml").write_text("{")
    assert killed == sweeps.newest_unfinished(tmp_path, SETTINGS)


def test_a_run_that_another_process_is_busy_with_is_neither_found_nor_entered(tmp_path, run):
    folder = run("busy", "unfinished")
    code = (
        f"from tskd.storage import status; from pathlib import Path\n"
        f"with status.alone(Path({str(folder)!r})):\n print(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert sweeps.newest_unfinished(tmp_path, SETTINGS) is None
        with pytest.raises(SystemExit):
            with_status(folder, lambda: pytest.fail("it was entered"))
        assert {"status": "unfinished"} == json.loads((folder / "status.json").read_text())
        process.kill()
        process.communicate()
    assert folder == sweeps.newest_unfinished(tmp_path, SETTINGS)


@pytest.mark.parametrize("reason", [SystemExit(-1), KeyboardInterrupt()])
def test_a_run_that_is_ended_from_outside_was_stopped_and_has_not_failed(tmp_path, reason):
    def work():
        raise reason

    with pytest.raises(type(reason)):
        with_status(tmp_path, work)
    assert "stopped" == json.loads((tmp_path / "status.json").read_text())["status"]
    assert not (tmp_path / "error.txt").exists()


def test_settings_differ_where_one_of_them_has_another_value_or_none():
    assert [] == saved.differences(SETTINGS, json.loads(json.dumps(SETTINGS)))
    assert ["lora.rank", "seed"] == saved.differences(
        SETTINGS, {**SETTINGS, "lora": {"rank": 8, "rate": 1e-5}, "seed": 0}
    )


def test_a_job_whose_time_is_over_is_stopped_and_the_next_goes_on(tmp_path):
    def late():
        assert {"status": "unfinished"} == json.loads((tmp_path / "status.json").read_text())
        raise OutOfTime("Stopped after 2 hours")

    (tmp_path / "error.txt").write_text("of an earlier attempt")
    with_status(tmp_path, late)
    assert {"status": "stopped", "error": "Stopped after 2 hours."} == json.loads(
        (tmp_path / "status.json").read_text()
    )
    assert not (tmp_path / "error.txt").exists()


@pytest.fixture
def sweep(tmp_path):
    """The folder ``it's`` of a sweep of four jobs: completed, failed, killed, and one that was never begun."""
    folder = tmp_path / "it's"
    given = {
        "task": ["seed=1", "threshold=1e9,0.5,1.5,2"],
        "hydra": ["hydra.sweep.dir=x", "hydra.sweep.subdir=${hydra.job.num}"],
    }
    statuses = {"1e9": "failed", "0.5": "completed", "1.5": None}
    for value, status in statuses.items():
        (folder / value / ".hydra").mkdir(parents=True)
        value_given = str(float(value)) if value == "1e9" else value
        (folder / value / ".hydra" / "overrides.yaml").write_text(yaml.dump(["seed=1", f"threshold={value_given}"]))
        if status:
            (folder / value / "status.json").write_text(json.dumps({"status": status}))
    (folder / "0.5" / "result.json").write_text(json.dumps({"eval/accuracy": 0.5}))
    content = {"hydra": {"overrides": given, "sweeper": {"params": None}}}
    (folder / "multirun.yaml").write_text(yaml.dump(content))
    return folder


def test_the_table_of_a_sweep_has_every_job_also_those_not_started(sweep):
    assert [
        ("threshold=0.5", "completed"),
        ("threshold=1.5", "unfinished"),
        ("threshold=1000000000.0", "failed"),
        ("threshold=2", "not started"),
    ] == [(name, status["status"]) for name, status, _ in sweeps.of_sweep(sweep)]


def test_a_sweep_goes_on_with_the_overrides_that_it_was_given(sweep):
    *others, place = sweeps.command_of_sweep(sweep)
    assert ["--multirun", "seed=1", "threshold=1e9,0.5,1.5,2", "hydra.sweep.subdir=${hydra.job.num}"] == others
    assert f"hydra.sweep.dir='{str(sweep).replace(chr(39), chr(92) + chr(39))}'" == place
    with pytest.raises(RunFolderError, match="holds no sweep"):
        sweeps.command_of_sweep(sweep.parent)


def test_code_that_a_sweep_was_allowed_to_run_is_allowed_anew_when_it_goes_on(sweep):
    file = sweep / "multirun.yaml"
    file.write_text(file.read_text().replace("- seed=1", "- seed=1\n    - allow=my_rules"))
    with pytest.raises(ConfigError, match="was given `allow=my_rules`; if you trust that code, give it again"):
        to_go_on_with([f"sweep.resume={sweep}"])
    with pytest.raises(ConfigError, match="leave out seed=2"):
        to_go_on_with([f"sweep.resume={sweep}", "allow=my_rules", "seed=2"])
    _, command = to_go_on_with([f"sweep.resume={sweep}", "allow=my_rules"])
    assert "allow=my_rules" in command
