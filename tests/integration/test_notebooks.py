"""The notebooks, executed as they are committed, on a sweep that the command line has just made."""

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest
import yaml

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = "this-interpreter"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two jobs that end well, the second of which finds much of the first in the store, and one that keeps nothing."""
    cwd = tmp_path_factory.mktemp("sweep")
    small = ["iterations=2", "expansion.num_drafts=40", "training.lora.epochs=2", "training.replay.num_texts=64"]
    where = ["trainer.accelerator=cpu", "hydra.sweep.dir=sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "tskd.run", "-m", *small, *where, "threshold=0.5,1.0,999999"],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert len(list(cwd.glob("sweep/*/result.json"))) == 2, done.stdout + done.stderr
    return cwd / "sweep"


@pytest.fixture(scope="module")
def executed(sweep, tmp_path_factory):
    """Each notebook with its outputs, from a kernel that is known to this test alone."""
    jupyter = tmp_path_factory.mktemp("jupyter")
    spec = jupyter / "kernels" / KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": KERNEL, "language": "python"}))
    surroundings = {
        "JUPYTER_PATH": jupyter,
        "JUPYTER_RUNTIME_DIR": jupyter / "runtime",
        "JUPYTER_PLATFORM_DIRS": 1,
        "IPYTHONDIR": jupyter / "ipython",
        "PYTHONPATH": ROOT,
        "TSKD_RUN": run_of(sweep),
        "TSKD_SWEEP": sweep,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, str(value))
        return {file.stem: execute(file) for file in NOTEBOOKS}


def run_of(sweep):
    files = sweep.glob("*/config.yaml")
    return next(file.parent for file in files if yaml.safe_load(file.read_text())["threshold"] == 0.5)


def execute(file):
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(file.parent)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name=KERNEL, resources=resources).execute()
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def rows(notebook):
    """The cells of each line of each table that is shown."""
    shown = [output.data.get("text/plain", "") for output in outputs(notebook) if "data" in output]
    lines = re.sub(r"\x1b\[\d+m", "", "\n".join(shown)).replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.strip().strip("│").split("│")] for line in lines if "│" in line]


def test_the_notebooks_are_committed_without_outputs():
    assert ["01_choose_a_threshold", "02_follow_a_prompt", "03_compare_a_sweep"] == [file.stem for file in NOTEBOOKS]
    for file in NOTEBOOKS:
        notebook = json.loads(file.read_text())
        nbformat.validate(notebook)
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
        assert 6 <= len(notebook["cells"]) <= 10


@pytest.mark.parametrize("name", [file.stem for file in NOTEBOOKS])
def test_every_cell_runs_without_a_complaint_and_draws_one_column(executed, name):
    made = outputs(executed[name])
    assert not [output for output in made if output.output_type == "error"]
    assert "" == "".join(output.text for output in made if output.get("name") == "stderr")
    images = [output.data["image/png"] for output in made if "image/png" in output.get("data", {})]
    assert len(images) == 1
    assert int.from_bytes(b64decode(images[0])[16:20]) == 3.4 * 150  # a PNG's width


def test_choosing_a_threshold_agrees_with_the_run(executed, sweep):
    result = json.loads((run_of(sweep) / "result.json").read_text())
    shown = rows(executed["01_choose_a_threshold"])
    (of_threshold,) = (row for row in shown if row[0] == "0.5")
    (of_rule,) = (row for row in shown if row[0] == "PplDifference")
    kept, *measured = str(result["select/kept"]), *(f"{result[f'select/{m}']:.2f}" for m in ("precision", "recall"))
    assert [kept, f"{result['select/kept_fraction']:.0%}", *measured] == of_threshold[1:]
    assert [kept, "100%", *measured] == of_rule[2:]
    assert {"LogPplDifference", "InversePplDifference", "PplRatio"} <= {row[0] for row in shown}


def test_following_a_prompt_tells_a_kept_and_a_dropped_one_and_what_became_of_the_target(executed):
    shown = rows(executed["02_follow_a_prompt"])
    (gaps,) = (row[1:] for row in shown if row[0] == "gap")
    assert float(gaps[0]) >= 0.5 > float(gaps[1])
    assert ["kept", "yes", "no"] in shown
    assert {"base", "teacher", "target before", "target after"} <= {row[0] for row in shown}


def test_comparing_a_sweep_shows_what_failed_and_what_the_store_saved(executed, sweep):
    shown = rows(executed["03_compare_a_sweep"])
    costs = {row[0]: row[1:] for row in shown if len(row) == 7}
    assert ["failed", *"–––––"] == next(cells for name, cells in costs.items() if "999999" in name)
    saved = [json.loads(file.read_text())["cost/reused_seconds"] for file in sweep.glob("*/result.json")]
    assert f"{sum(saved):,.0f}" == costs["all 3"][2]
    assert sum(saved) > 0
