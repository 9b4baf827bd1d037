"""The published tables are what the committed results give."""

import importlib.util
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SPEC = importlib.util.spec_from_file_location("tables", EXPERIMENTS / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


def test_the_tables_in_the_text_equal_the_committed_results():
    text = (EXPERIMENTS / "README.md").read_text()
    assert tables.default_table() in text
    assert tables.threshold_table() in text
    assert tables.replay_table() in text
    assert tables.transfer_table() in text
    assert tables.teacher_table() in text
