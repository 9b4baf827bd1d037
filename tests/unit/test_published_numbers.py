"""The published tables are what the committed results give."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


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
    assert tables.replay_table() in text
    assert tables.transfer_table() in text
    assert tables.teacher_table() in text


def test_the_tables_of_the_criteria_equal_the_committed_rows():
    pytest.importorskip("scipy", reason="comes with the extra `benchmarks`")
    criteria = load(EXPERIMENTS / "selection" / "criteria.py")
    text = (EXPERIMENTS / "selection" / "README.md").read_text()
    for table in criteria.tables().split("\n\n"):
        assert table in text
