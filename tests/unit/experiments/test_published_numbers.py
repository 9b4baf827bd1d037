"""The published tables are what the committed results give."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_in_the_text_equal_the_committed_results():
    tables = load(EXPERIMENTS / "tables.py")
    text = (EXPERIMENTS / "README.md").read_text()
    assert tables.default_table() in text
    assert tables.threshold_table() in text
    assert tables.auto_threshold_table() in text
    assert tables.polluted_table() in text
    assert tables.screen_table() in text
    assert tables.pair_threshold_table() in text
    assert tables.replay_table() in text
    assert tables.transfer_table() in text
    assert tables.pair_table() in text
    assert tables.teacher_table() in text


def test_the_tables_of_the_answers_equal_the_committed_results():
    tables = load(EXPERIMENTS / "tables.py")
    text = (EXPERIMENTS / "README.md").read_text()
    assert all(table() in text for table in tables.ANSWERS)


def test_the_table_of_the_bench_equals_the_committed_measurements(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "bench"))
    bench = load(EXPERIMENTS / "bench" / "run.py")
    text, results = (EXPERIMENTS / "bench" / "README.md").read_text(), EXPERIMENTS / "bench" / "results"
    for threads in ("one_thread", "two_threads", "two_threads_gemma3", "two_threads_float32"):
        assert bench.speed_table(json.loads((results / f"{threads}.json").read_text())["measurements"]) in text
    assert bench.report(json.loads((results / "sweep.json").read_text())) in text


def test_the_table_of_the_arms_equals_the_committed_results():
    arms = load(EXPERIMENTS / "arms.py")
    assert arms.table(arms.read()) in (EXPERIMENTS / "README.md").read_text()


def test_the_results_of_the_arms_are_those_of_a_sweep_by_arm_and_seed(tmp_path):
    for seed, accuracies in {"0": (0.5, 0.75), "1": (0.5, 1.0)}.items():
        for arm, accuracy in zip(("ppl_difference", "all"), accuracies, strict=True):
            job = tmp_path / f"{arm},{seed}"
            (job / ".hydra").mkdir(parents=True)
            (job / ".hydra" / "overrides.yaml").write_text(f"- experiment=arms/{arm}\n- seed={seed}\n")
            row = {"train/examples": 9, "select/precision": 1, "eval/accuracy": accuracy, "eval/general_accuracy": 0}
            (job / "result.json").write_text(json.dumps(row))
    arms = load(EXPERIMENTS / "arms.py")
    first, second = arms.table(arms.collect(tmp_path)).splitlines()[2:]
    assert first == "| all | 2 | 9 ± 0 | 1.000 ± 0.000 | 0.875 ± 0.177 | 0.000 ± 0.000 | 37.5 ± 17.7 |"
    assert second.startswith("| ppl_difference | 2 |")
    assert second.endswith("| – |")


def test_the_table_of_coverage_equals_the_committed_rows():
    assert load(EXPERIMENTS / "coverage.py").coverage_table() in (EXPERIMENTS / "README.md").read_text()


def test_the_tables_of_the_criteria_equal_the_committed_rows():
    pytest.importorskip("scipy", reason="comes with the extra `benchmarks`")
    criteria = load(EXPERIMENTS / "selection" / "criteria.py")
    text = (EXPERIMENTS / "selection" / "README.md").read_text()
    for table in criteria.tables().split("\n\n"):
        assert table in text


def test_the_tables_of_the_pools_with_styles_equal_the_committed_rows(monkeypatch):
    for folder in (EXPERIMENTS, EXPERIMENTS / "selection"):
        monkeypatch.syspath_prepend(str(folder))
    text = (EXPERIMENTS / "selection" / "README.md").read_text()
    for table in load(EXPERIMENTS / "selection" / "styled.py").tables().split("\n\n"):
        assert table in text
