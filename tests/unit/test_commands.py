"""``tskd COMMAND`` is ``python -m tskd.COMMAND``; commands are thin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tskd
from tskd.__main__ import ALIASES, COMMANDS

PACKAGE = Path(tskd.__file__).parent


def start(cwd, *arguments):
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "COLUMNS": "120"}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_command_is_found_by_its_name(tmp_path):
    done = start(tmp_path, "tskd", "check", "threshold=never")
    assert (1, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("Check  1 problem\n")
    assert "`threshold` is 'never'" in done.stdout
    assert [] == list(tmp_path.iterdir())


def test_without_a_command_it_is_run(tmp_path):
    ours, runs = (start(tmp_path, command, "threshold=0.5", "--help") for command in ("tskd", "tskd.run"))
    assert (0, ours.stdout) == (runs.returncode, runs.stdout)
    assert "Powered by Hydra" in ours.stdout


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_command_under_its_older_name(tmp_path, alias):
    commands = ([f"tskd.{alias}"], [f"tskd.{ALIASES[alias]}"], ["tskd", alias])
    helps = {start(tmp_path, *command, "--help").stdout for command in commands}
    assert [True] == ["usage:" in each for each in helps]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "report"])
def test_a_command_is_at_most_60_lines(command):
    assert 60 >= len((PACKAGE / f"{command}.py").read_text().splitlines())
