"""The benchmark beside its peers, on a tiny model: every side does the same work."""

import importlib
import json
import math
from pathlib import Path

import pytest

from tests import fabricated

pytestmark = pytest.mark.slow

pytest.importorskip("lm_eval")
BENCH = Path(__file__).parents[2] / "experiments" / "bench"


@pytest.fixture
def run(monkeypatch):
    """``run.py``, which measures in this process, where all is imported already."""
    monkeypatch.syspath_prepend(str(BENCH))
    run, work = importlib.import_module("run"), importlib.import_module("work")
    monkeypatch.setattr(run, "in_child", lambda job: json.loads(json.dumps(work.main(job))))
    return run


@pytest.fixture
def arguments(llama, tmp_path):
    for task in ("navigate", "snarks"):
        fabricated.write_bbh(tmp_path, task)
    return ["--model", str(llama), "--data", str(tmp_path), "--rounds", "1", "--pairs", "10"]


def rows(printed):
    return [[cell.strip() for cell in line.split("|")[2:4]] for line in printed.splitlines() if "tiny-llama |" in line]


def test_each_side_scores_and_generates_the_same(run, arguments, tmp_path, capsys):
    results = run.main([*arguments, "--only", "score,generate", "--out", str(tmp_path / "results.json")])
    sides = [[kind, side] for kind in ("score", "generate") for side in run.SIDES[kind]]
    assert sides == rows(capsys.readouterr().out)
    assert results == json.loads((tmp_path / "results.json").read_text())
    for check in results["checks"]:
        if check["kind"] == "score":
            assert check["mean nll of a response, ours"] > 1
            assert math.isclose(0, check["largest difference"], abs_tol=1e-3)
        else:
            assert check["of"] == check["equal texts"] == 10


def test_each_side_trains_on_the_same_tokens(run, arguments, capsys):
    pytest.importorskip("trl")
    results = run.main([*arguments, "--only", "train"])
    assert [["train", side] for side in run.SIDES["train"]] == rows(capsys.readouterr().out)
    for check in results["checks"]:
        assert check["tokens, ours"] == check["tokens, peer"]
        assert math.isclose(check["loss, ours"], check["loss, peer"], rel_tol=0.2)


def test_a_measurement_in_a_process_of_its_own(monkeypatch, arguments, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "SIDES", {"score": {"ours": ""}})
    (measured,) = run.main([*arguments, "--only", "score"])["measurements"]
    assert 0 < measured["seconds"]
    assert 0 < measured["loaded_mb"] <= measured["peak_mb"]
