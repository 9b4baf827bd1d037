"""All experiments of the grid, rehearsed from the teacher to the result, on tiny random models."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from tests import fabricated
from tests.integration.test_cli import result, tskd
from tskd.config import hydra_plugins, saved
from tskd.errors import ConfigError, SandboxError
from tskd.experiment import job
from tskd.models import rehearsal
from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import Weights
from tskd.report import grid
from tskd.storage import status
from tskd.tasks.sandbox import isolated_tests

CONF = Path(hydra_plugins.folder())
MODELS = sorted((CONF / "model").glob("[a-z]*.yaml"))
DATA = Path(__file__).parents[3] / "shared" / "data"
EXPERIMENTS = [f"{paper}/{name}" for paper, content in grid.PAPERS.items() for name in content["cells"]]
KINDS = {"translora/bbh_llama2_7b_to_gemma_7b", "titok/mmlu_mistral_7b_to_llama3_1_8b"}


@cache
def can_isolate():
    try:
        isolated_tests.check_available()
    except SandboxError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The published files where they lie beside the repository, made-up ones of the same form where not."""
    if DATA.is_dir():
        return str(DATA)
    return fabricated.write_all(tmp_path_factory.mktemp("data"), ["boolean_expressions"], ["abstract_algebra"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One working folder for all, so that each stand-in is made once."""
    folder, before = tmp_path_factory.mktemp("rehearsals"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def rehearsed(place, data):
    @cache
    def rehearse(experiment):
        hydra_plugins.register()
        overrides = [f"experiment={experiment}", "scale=rehearsal", f"task.root={data}"]
        if "/mbpp_" in experiment:
            overrides.append("task.allow_code_execution=true")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = saved.resolved(compose("config", overrides))
        folder = place / "runs" / experiment
        status.with_status(folder, lambda: job(cfg, folder, "rehearsals", "run"))
        return folder

    return rehearse


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_of_the_grid_runs_from_its_teacher_to_its_result(experiment, rehearsed):
    if "/mbpp_" in experiment and can_isolate():
        pytest.skip(can_isolate())
    folder = rehearsed(experiment)
    assert {"status": "completed"} == json.loads((folder / "status.json").read_text())
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["iterations"], "rehearsal") == (result(folder)["iterations"], settings["name"])
    (teacher,) = Path(settings["teacher"]["folder"]).glob("*/card.json")
    assert settings["base"]["checkpoint"]["name"] in teacher.parent.name
    for voice in ("base", "teacher", "target", "iteration_1"):
        assert settings["task"]["limit"] == len((folder / "evaluation" / f"{voice}.jsonl").read_text().splitlines())
    everything = 2 * settings["expansion"]["num_drafts"] + settings["task"]["num_seeds"]
    assert everything - 4 < result(folder)["train/examples"] <= everything
    for model in ("base", "target"):
        made = json.loads(Path(settings[model]["checkpoint"]["path"], "config.json").read_text())
        assert settings[model]["checkpoint"]["architecture"] == made["model_type"]


@pytest.mark.parametrize(("arm", "target"), [("discriminator", "gemma3_270m"), ("diff_vector", "smollm2_135m")])
def test_an_arm_can_be_rehearsed_on_a_real_pair(arm, target, place, data):
    pair = ["base=smollm2_135m", "teacher=finetuned", f"target={target}", "task=bbh", "task.subset=boolean_expressions"]
    hydra_plugins.register()
    overrides = [f"experiment=arms/{arm}", *pair, "scale=rehearsal", f"task.root={data}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = saved.resolved(compose("config", overrides))
    folder = place / "arms" / arm
    status.with_status(folder, lambda: job(cfg, folder, "rehearsals", "run"))
    assert {"status": "completed"} == json.loads((folder / "status.json").read_text())
    assert (arm == "diff_vector") is (result(folder)["train/examples"] == 0)


def test_a_rehearsal_fills_no_cell(rehearsed, place):
    for kind in KINDS:
        rehearsed(kind)
    table = grid.grid([place / "runs"])
    assert len(EXPERIMENTS) == table.count("| not run |")
    assert "### In no cell\n\n- a rehearsal: " in table
    nothing = grid.grid([])
    assert nothing == table.partition("\n\n### In no cell")[0]


def test_a_whole_sweep_is_rehearsed_from_the_command_line(tmp_path, data):
    experiment = "translora/mmlu_llama2_7b_to_llama2_13b"
    narrowed = ["seed=0,1", "task.subset=abstract_algebra", f"task.root={data}"]
    printed = tskd(tmp_path, "-m", f"experiment={experiment}", "scale=rehearsal", *narrowed, "hydra.sweep.dir=sweep")
    assert 4 == printed.count("It proves the wiring, not the result.")
    assert 2 == len(list((tmp_path / "sweep").glob("*/result.json")))
    assert {"rehearsal"} == {yaml.safe_load(f.read_text())["name"] for f in tmp_path.glob("sweep/*/config.yaml")}


def test_a_stand_in_is_made_once_and_each_checkpoint_has_its_own(place):
    first = Path(rehearsal.stand_in("gemma", "one"))
    weights = first / "model.safetensors"
    made = weights.stat().st_mtime_ns, weights.read_bytes()
    assert first == Path(rehearsal.stand_in("gemma", "one"))
    assert made == (weights.stat().st_mtime_ns, weights.read_bytes())
    assert made[1] != Path(rehearsal.stand_in("gemma", "other"), "model.safetensors").read_bytes()


@pytest.mark.parametrize("architecture", sorted({yaml.safe_load(f.read_text())["architecture"] for f in MODELS}))
def test_every_architecture_of_the_checkpoints_has_a_stand_in_that_loads(architecture, place):
    weights = Weights(Checkpoint(architecture, rehearsal.stand_in(architecture, "any"), dtype="float32"))
    assert (architecture, 2) == (weights.model.config.model_type, weights.model.config.num_hidden_layers)


def test_an_architecture_that_there_is_not_is_one_line(place):
    with pytest.raises(ConfigError, match="`checkpoint.architecture` is ''"):
        rehearsal.stand_in("", "mine")
