"""Searches that end by themselves: they make the run's own result as high as they can, and outlive failed trials."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from tskd import config
from tskd.metrics import METRICS
from tskd.run import OBJECTIVE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WANDB = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())


def test_optuna_finds_the_threshold_that_works_although_the_first_trial_fails(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=search", "hydra.sweeper.n_trials=2", "threshold=choice(0.5,999999)"]
    small = ["iterations=1", "expansion.num_drafts=16", "training.replay.num_texts=8", "training.lora.epochs=1"]
    rest = ["training.lora.learning_rate=0.002", "trainer.accelerator=cpu", "hydra.sweep.dir=sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "tskd.run", "-m", *search, *small, *rest],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert 1 == said.count("Failed experiment"), said
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    (result,) = (tmp_path / "sweep").glob("*/result.json")
    assert {"threshold": 0.5} == found["best_params"]
    assert yaml.safe_load(result.read_text())[OBJECTIVE] == found["best_value"]


def test_the_search_is_for_settings_that_there_are_and_repeats():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    config.register()
    with initialize_config_dir(config.folder(), version_base="1.3"):
        composed = compose("config", ["hydra/sweeper=search"], return_hydra_config=True)
        sweeper = composed.hydra.sweeper
        assert ("maximize", 1, 0) == (sweeper.direction, sweeper.max_failure_rate, sweeper.sampler.seed)
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
    config.register()
    with initialize_config_dir(config.folder(), version_base="1.3"):
        composed = compose("config", [*fixed, *(f"{name}={value}" for name, value in values.items())])
    assert values["threshold"] == composed.threshold
