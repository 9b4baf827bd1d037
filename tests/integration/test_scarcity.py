"""A full disk and a read-only one: one line, a failing exit code, and a run that goes on once it can write."""

import errno
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests import tiny
from tests.integration.test_cli import SMALL, command, result, tskd
from tskd.errors import RunFolderError
from tskd.models.encoding import encode_response
from tskd.models.weights import LanguageModel
from tskd.modules.finetuner import finetune
from tskd.modules.lora import LoraSettings
from tskd.records import Prompt
from tskd.storage import status


@pytest.fixture
def disk(tmp_path):
    """A file system of its own; ``remount`` fills, enlarges or closes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or mount(folder, "-t", "tmpfs", "-o", "size=16m", "tmpfs") != 0:
        pytest.skip("a small disk can be mounted by root on Linux only")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def mount(folder, *options):
    return subprocess.run(["mount", *options, folder], capture_output=True).returncode


def remount(folder, option):
    assert mount(folder, "-o", f"remount,{option}") == 0


def fill(folder):
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def filled_after(pattern, disk, *arguments):
    """What a job has printed that found the disk full once there was a file like ``pattern``."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command(*arguments), cwd=disk, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list(disk.glob(pattern)) and process.poll() is None:
        time.sleep(0.005)
    fill(disk)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1, printed
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize("last", ["expansion.json", "kept.jsonl"])  # there before the disk is full; others may be too
def test_a_job_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(disk, last):
    iteration = disk / "run" / "iteration_0"
    printed = filled_after(f"run/iteration_0/{last}", disk, *SMALL, "iterations=1", "hydra.run.dir=run")
    (line,) = [line for line in printed.splitlines() if "Cannot write" in line]
    assert "No space left on device" in line
    unwritten = re.search("Cannot write (.+?): ", line)[1]
    # Of a journal, a line that could not be written whole may be there, and is not taken.
    assert ".journal" in unwritten or not (disk / unwritten).exists()
    before = (iteration / last).read_bytes()
    run_id = logged(disk / "run")["run_id"]

    remount(disk, "size=64m")
    tskd(disk, "resume=run")
    assert before == (iteration / last).read_bytes()
    assert result(disk / "run")["iterations"] == 1
    if run_id:  # empty where the disk was full before W&B could begin; tracking is then given up, the job is not
        assert (run_id, 1) == tuple(logged(disk / "run")[key] for key in ("run_id", "iterations"))

    remount(disk, "ro")
    printed = tskd(disk, "resume=run", expect=1)
    assert "Read-only file system" in printed
    assert "Traceback" not in printed


def logged(folder):
    return json.loads((folder / "wandb" / "logged.json").read_text())


def test_a_sweep_ends_where_its_disk_is_full(disk):
    filled_after("sweep/*/iteration_0/expansion.json", disk, "-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert len(list((disk / "sweep").glob("*/iteration_0"))) == 1


@pytest.mark.parametrize("arguments", [["hydra.run.dir=run"], ["-m", "seed=0,1", "hydra.sweep.dir=run"]])
@pytest.mark.parametrize(("option", "said"), [("ro", "Read-only file system"), ("size=40k", "No space left on device")])
def test_a_folder_that_cannot_be_written_is_said_before_anything_else(disk, option, said, arguments):
    remount(disk, option)
    (line,) = tskd(disk, *arguments, *SMALL, expect=1).splitlines()
    assert line.startswith("Cannot write to ")
    assert said in line


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")])
def test_an_adapter_that_cannot_be_saved_whole_is_not_there_and_takes_no_other_away(
    neox, tmp_path, trainer, monkeypatch, error
):
    weights = tiny.weights(neox)
    examples = [encode_response(LanguageModel(weights), Prompt("q"), "a", finished=True)]
    given = {"settings": LoraSettings(rank=2, epochs=1), "trainer": trainer, "seed": 0, "key": "k"}
    finetune(weights, examples, save_to=tmp_path / "old", **given)
    old = (tmp_path / "old" / "adapter_model.safetensors").read_bytes()

    def half(_, folder, **__):
        Path(folder).mkdir()
        (Path(folder) / "adapter_config.json").write_text("{")
        raise error

    monkeypatch.setattr("peft.PeftModel.save_pretrained", half)
    for name in ("old", "new"):
        with pytest.raises(RunFolderError, match=rf"Cannot write the adapter .*{name}: .*No space left on device"):
            finetune(weights, examples, save_to=tmp_path / name, **given)
    assert [tmp_path / "old"] == list(tmp_path.iterdir())
    assert old == (tmp_path / "old" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "end", [lambda folder: status.record_failure(folder, RunFolderError("x")), status.record_success]
)
def test_an_end_that_cannot_be_noted_is_told_by_the_exit_code(tmp_path, end):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        end(tmp_path / "file")
    assert left.value.code == 1
