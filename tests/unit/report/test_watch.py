"""The table of jobs while they run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.fabricated_runs import write_run
from tskd.report import watch

ROOT = Path(__file__).parents[3]


def shown(*folders):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(watch.table(folders))
    return captured.get()


def test_each_job_is_shown_with_how_far_it_has_come_and_a_failed_one_with_why(tmp_path):
    write_run(tmp_path / "a", ["threshold=0.5"], threshold=0.5, prompts=5)
    running = write_run(tmp_path / "b", ["threshold=4"], threshold=4, prompts=5)
    (running / "status.json").unlink()
    first_row = (running / "metrics.jsonl").read_text().splitlines()[0]
    (running / "metrics.jsonl").write_text(first_row + "\n")
    failed = tmp_path / "c" / ".hydra"
    failed.mkdir(parents=True)
    (failed / "config.yaml").write_text("")
    (failed / "overrides.yaml").write_text("- threshold=x")
    (tmp_path / "c" / "status.json").write_text('{"status": "failed", "error": "`threshold` is x."}')
    lines = shown(tmp_path).splitlines()
    cells = {words[1]: words for words in ([w.strip() for w in line.split("│")] for line in lines if "│" in line)}
    assert ["completed", "3 of 3"] == cells["threshold=0.5"][2:4]
    assert ["unfinished", "1 of 3"] == cells["threshold=4"][2:4]
    assert "s ago" in cells["threshold=4"][-2]
    assert "failed" == cells["threshold=x"][2]
    assert "threshold=x: `threshold` is x." in "\n".join(lines)
    assert "1 completed, 1 failed, 1 unfinished" in "\n".join(lines)


def test_a_sweep_that_has_not_begun_is_waited_for(tmp_path):
    assert "There is no run in" in shown(tmp_path / "soon")


def test_watching_ends_with_the_keyboard_and_writes_nothing(tmp_path):
    write_run(tmp_path / "run", prompts=5)
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-u", "-m", "tskd.report", str(tmp_path), "--watch"]
    env = os.environ | {"TTY_COMPATIBLE": "1"}  # for rich, so that it draws before its end
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = b""
        started = time.monotonic()
        while b"1 completed" not in output and time.monotonic() - started < 60:
            output += process.stdout.read1()
        process.send_signal(signal.SIGINT)
        output += process.stdout.read()
    assert 0 == process.returncode, output.decode()
    assert before == sorted(tmp_path.rglob("*"))
