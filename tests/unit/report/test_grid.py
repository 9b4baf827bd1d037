"""The grid's experiments: each composes, and says what the papers say."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tskd.config import hydra_plugins
from tskd.report import grid
from tskd.tasks.bbh import TASKS
from tskd.tasks.mmlu import SUBJECTS

CONF = Path(hydra_plugins.folder())
NAMES = sorted(f"{paper}/{file.stem}" for paper in grid.PAPERS for file in (CONF / "experiment" / paper).glob("*.yaml"))
SWEEP = {"bbh": TASKS, "mmlu": SUBJECTS}


@cache
def composed(name, *overrides):
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"experiment={name}", *overrides], return_hydra_config=True)


def test_the_grid_is_three_pairs_on_four_benchmarks_and_four_pairs_on_two():
    assert 3 * 4 + 4 * 2 == len(NAMES)
    assert {
        paper: sorted(name.partition("/")[2] for name in NAMES if name.startswith(paper)) for paper in grid.PAPERS
    } == {paper: sorted(content["cells"]) for paper, content in grid.PAPERS.items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_named_by_paper_benchmark_base_and_target(name):
    cfg = composed(name)
    paper, _, rest = name.partition("/")
    benchmark = cfg.task["_target_"].rpartition(".")[2].lower()
    assert f"{benchmark}_{cfg.base.checkpoint.name}_to_{cfg.target.checkpoint.name}" == rest
    assert f"{paper}_{rest}" == cfg.name
    command = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1].removeprefix("# ")
    (said,) = (e.command for rows in grid.experiments().values() for e in rows if e.name == name)
    assert said == command


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("translora")])
def test_the_settings_that_trans_lora_states_are_set(name):
    cfg = composed(name)
    is_mmlu = "/mmlu_" in name
    for lora in (cfg.teacher.lora, cfg.training.lora):
        assert (2e-4 if is_mmlu else 2e-5, 10 if is_mmlu else 20, 8) == (
            lora.learning_rate,
            lora.epochs,
            lora.batch_size,
        )
        assert (["q_proj", "v_proj"], 0, 0) == (list(lora.target_modules), lora.warmup, lora.weight_decay)
    assert ("target", 5, 0) == (cfg.expansion.writer, cfg.task.num_seeds, cfg.task.num_fewshot)
    if "/gsm8k_" in name:
        assert (False, 250) == (cfg.task.chain_of_thought, cfg.task.num_private)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("titok")])
def test_the_settings_that_titok_states_are_set(name):
    cfg = composed(name)
    lora = cfg.training.lora
    assert (8, 8, ["q_proj", "v_proj"]) == (lora.rank, lora.alpha, list(lora.target_modules))
    assert (5e-5, 2, 4) == (lora.learning_rate, lora.epochs, lora.batch_size)
    assert 500 == cfg.iterations * cfg.expansion.num_drafts


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_sweeps_thresholds_seeds_and_every_part_of_its_benchmark(name):
    cfg = composed(name)
    sweep = {key: tuple(map(str.strip, str(value).split(","))) for key, value in cfg.hydra.sweeper.params.items()}
    parts = SWEEP.get(name.partition("/")[2].partition("_")[0])
    assert ({"task.subset"} if parts else set()) == sweep.keys() - {"threshold", "seed"}
    assert parts is None or sweep["task.subset"] == tuple(parts)
    assert parts is None or cfg.task.subset == parts[0]
    assert "1.5" in sweep["threshold"]  # the paper's example
    assert len(sweep["seed"]) >= 3
    assert ("none", "tskd.stages.select.PplDifference") == (cfg.training.replay.source, cfg.selection["_target_"])


@pytest.mark.parametrize("name", NAMES)
def test_a_rehearsal_of_an_experiment_composes_and_changes_no_setting_of_its_training_but_epochs(name):
    real, rehearsed = (composed(name, *scale) for scale in ((), ("scale=rehearsal",)))
    for key in ("rank", "alpha", "target_modules", "learning_rate", "batch_size", "warmup"):
        assert real.training.lora[key] == rehearsed.training.lora[key]
        assert real.teacher.lora[key] == rehearsed.teacher.lora[key]
    raw = OmegaConf.to_container(rehearsed.target.checkpoint, resolve=False)
    assert (None, "float32") == (raw["revision"], raw["dtype"])
    assert raw["path"].startswith("${rehearsal:")
