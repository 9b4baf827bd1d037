"""What the terminal shows of a sweep."""

from pathlib import Path

from tskd.tracking import console


def printed(capsys, *jobs):
    console.sweep([(name, {"status": status}, result) for name, status, result in jobs], Path("sweep"))
    return capsys.readouterr().out


def test_the_table_of_a_sweep_has_the_columns_that_any_of_its_jobs_has(capsys):
    rows = [("seed=0", "completed", {"train/examples": 9, "eval/accuracy": 0.5}), ("seed=1", "not started", {})]
    shown = printed(capsys, *rows)
    head = next(line for line in shown.splitlines() if "job  " in line)
    assert ["job", "status", "kept", "accuracy"] == head.split()
    assert "seed=1: did not finish" in shown


def test_a_long_name_has_the_room_that_absent_columns_leave(capsys, monkeypatch):
    monkeypatch.setattr(console.console, "_width", 80)
    name = "+expansion.off_task=0.75,selection/screen=seed_likeness"
    shown = printed(capsys, (name, "completed", {"train/examples": 92, "eval/accuracy": 0.75}))
    assert name[:40] in shown
    assert name in "".join(line.strip().split("  ")[0] for line in shown.splitlines())


def test_names_and_errors_in_brackets_are_shown_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr(console.console, "_width", 120)
    name = "experiment=[smollm2,arms/random],x=:smile:[/bold]"
    console.sweep([(name, {"status": "failed", "error": "[red] is no rule"}, {})], Path("[a]"))
    console.header({"select": "[bold] of :x:"})
    shown = capsys.readouterr().out
    assert f"{name}  failed" in shown
    assert f"{name}: [red] is no rule\n" in shown
    assert "all jobs: [a]\n" in shown
    assert "select     [bold] of :x:\n" in shown
