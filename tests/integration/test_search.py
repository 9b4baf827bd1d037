"""Searches that end by themselves: they make the run's own result as high as they can, and outlive failed trials."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from tskd.config import hydra_plugins
from tskd.config.sweeps import OBJECTIVE
from tskd.metrics.iteration import METRICS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WANDB = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())


def search(folder, *overrides):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    small = ["iterations=1", "expansion.num_drafts=16", "training.replay.num_texts=8", "training.lora.epochs=1"]
    rest = ["training.lora.learning_rate=0.002", "trainer.accelerator=cpu", "hydra.sweep.dir=sweep"]
    return subprocess.run(
        [sys.executable, "-m", "tskd.run", "-m", "hydra/sweeper=search", *small, *rest, *overrides],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_optuna_finds_the_threshold_that_works_although_the_first_trial_fails(tmp_path):
    done = search(tmp_path, "hydra.sweeper.n_trials=2", "threshold=choice(0.5,999999)")
    said = done.stdout + done.stderr
    assert 1 == said.count("Failed experiment"), said
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    (result,) = (tmp_path / "sweep").glob("*/result.json")
    assert {"threshold": 0.5} == found["best_params"]
    assert yaml.safe_load(result.read_text())[OBJECTIVE] == found["best_value"]


def test_a_search_of_which_every_trial_fails_is_one_line_and_the_table_of_its_jobs(tmp_path):
    done = search(tmp_path, "hydra.sweeper.n_trials=2", "threshold=1", "training.lora.rank=choice(0,-1)")
    assert 1 == done.returncode
    assert ["None of the 2 trials of the search succeeded"] == [
        line.partition(",")[0] for line in done.stderr.splitlines() if "trials" in line
    ]
    assert "Traceback" not in done.stderr
    for rank in (0, -1):
        assert f"training.lora.rank={rank}: `training.lora.rank` is {rank}" in done.stdout


def test_the_search_is_for_settings_that_there_are_and_repeats():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        composed = compose("config", ["hydra/sweeper=search"], return_hydra_config=True)
        sweeper = composed.hydra.sweeper
        assert ("maximize", 1, 0) == (sweeper.direction, sweeper.max_failure_rate, sweeper.sampler.seed)
        on_disk = compose("config", ["hydra/sweeper=search", "hydra.sweeper.storage='sqlite:///a.db'"], True)
        assert "sqlite:///a.db" == on_disk.hydra.sweeper.storage
        for name in sweeper.params:
            compose("config", [f"{name}=1"])  # an unknown one is refused


def test_a_wandb_sweep_starts_runs_whose_settings_and_objective_there_are():
    assert OBJECTIVE == WANDB["metric"]["name"]
    assert OBJECTIVE in METRICS
    assert "maximize" == WANDB["metric"]["goal"]
    command = WANDB["command"]
    assert ["-m", WANDB["program"]] == command[2:4]
    values = {name: each.get("values", [each.get("min")])[0] for name, each in WANDB["parameters"].items()}
    fixed = [word for word in command[4:] if not word.startswith("$")]
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        composed = compose("config", [*fixed, *(f"{name}={value}" for name, value in values.items())])
    assert values["threshold"] == composed.threshold
