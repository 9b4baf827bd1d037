"""Run folders that version 0.1.0 wrote before the package was cut into rooms still load, resume and report.

``tests/old_runs`` holds a finished run and one that SIGTERM stopped in its second iteration (commit bba98fb).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_cli import tskd
from tskd.config import saved
from tskd.config.build import build
from tskd.results.finished_run import FinishedRun
from tskd.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "old_runs"


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_a_finished_run_is_read_and_its_configuration_builds(old):
    run = FinishedRun.read(old / "finished")
    (iteration,) = RunFolder(old / "finished").history()
    assert len(iteration.selection.kept) == run.result["select/kept"] > 0
    assert run.adapter.is_dir()
    cfg = saved.resolved(saved.of_run(old / "finished"))
    built = build({**cfg, "store": "off"}, old / "again")
    assert type(built.stages.expand).__name__ == "FewShot"


def test_an_unfinished_run_goes_on_to_its_result(old):
    folder = old / "unfinished"
    before = (folder / "iteration_0" / "scored.jsonl").read_bytes()
    tskd(old, f"resume={folder}")
    assert json.loads((folder / "status.json").read_text())["status"] == "completed"
    assert json.loads((folder / "result.json").read_text())["iterations"] == 2
    assert before == (folder / "iteration_0" / "scored.jsonl").read_bytes()


def test_an_old_run_can_be_reported(old):
    pytest.importorskip("statsmodels")
    command = [sys.executable, "-m", "tskd.report", str(old / "finished"), "--out", str(old / "report")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (old / "report").is_dir()
