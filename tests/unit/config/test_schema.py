"""The configuration: every option composes and can be built, and what is wrong is said before anything loads."""

import importlib
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests import tiny
from tskd import experiment
from tskd.config import hydra_plugins, schema
from tskd.engines.continuous_batching import ContinuousBatching
from tskd.engines.own import OwnLoop
from tskd.errors import ConfigError, ModelError, TskdError
from tskd.stages.coverage import Covered
from tskd.storage import atomic_files
from tskd.storage.fingerprint import cache_key
from tskd.tuneshift import never

CONF = Path(hydra_plugins.folder())
OPTIONS = [
    f"{group}={file.stem}"
    for group in (
        "base",
        "target",
        "teacher",
        "task",
        "expansion",
        "answer",
        "selection",
        "training",
        "trainer",
        "engine",
        "tracking",
    )
    for file in sorted((CONF / group).glob("[a-z]*.yaml"))
]
EXPERIMENTS = [f"experiment={file.stem}" for file in sorted((CONF / "experiment").glob("*.yaml"))]


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def built(tmp_path, *overrides):
    return experiment.build(composed(*overrides), tmp_path)


@pytest.mark.parametrize("option", [*OPTIONS, *EXPERIMENTS])
def test_every_option_composes(option):
    seeds = ["task.seeds=x"] if option == "task=files" else []
    own = {"selection=recommended": "auto", "selection=discriminator": 0.0}
    assert composed(option, *seeds)["threshold"] == own.get(option, 1.5)


def test_iterations_are_counted_or_left_to_the_stop_rule(tmp_path):
    counted, auto = built(tmp_path, "iterations=2"), built(tmp_path, "iterations=auto", "stop.max_iterations=7")
    assert (2, 7) == (counted.iterations, auto.iterations)
    assert (never, Covered(0.95, 7)) == (counted.stop, auto.stop)


def test_the_slurm_launcher_gives_each_job_one_gpu():
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = compose("config", overrides=["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.gpus_per_node, launcher.tasks_per_node) == (1, 1)


def test_the_default_is_the_embedded_world_under_the_papers_rule(tmp_path):
    made = built(tmp_path)
    assert len(made.seeds) == 8
    assert made.stages.select.rule.threshold == 1.5
    assert {split: sum(q.split == split for q in made.evaluator.questions) for split in ("private", "general")} == {
        "private": 112,
        "general": 120,
    }


def test_the_threshold_is_the_roots():
    assert composed("threshold=0.5")["selection"]["threshold"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["threshold=nan"], "`threshold` is nan"),
        (["iterations=0"], "`iterations` is 0"),
        (["iterations=2.5"], r"`iterations` is 2\.5; give a whole number, at least 1, or auto"),
        (["iterations=true"], "`iterations` is True"),
        (["iterations=never"], "`iterations` is 'never'"),
        (["iterations=auto", "stop.max_iterations=0"], "`stop.max_iterations` is 0"),
        (["iterations=auto", "stop.coverage=1", "+stop.level=1"], "`stop.coverage` is 1: .*`stop.level` is unknown"),
        (["stop.coverage=0"], "`stop.coverage` is 0"),
        (["name='../x'"], "`name` is '../x'"),
        (["selection.threshold=0.1"], "set `threshold` alone"),
        (["expansion.num_drafts=many"], "`expansion.num_drafts` is 'many'"),
        (["expansion.num_drafts=0", "expansion.top_p=x"], "num_drafts.*top_p"),
        (["+expansion.wrong=1"], "`expansion.wrong` is unknown; there are"),
        (["expansion.writer=nobody"], "`expansion.writer` is 'nobody'"),
        (["training.lora.learning_rate=-1"], "`training.lora.learning_rate` is -1"),
        (["selection._target_=tskd.stages.select.thresholds.Nope"], "names no class"),
        (["trainer.precision=bf16-true"], "`trainer.precision` is 'bf16-true': Input should be '32-true'"),
        (
            ["trainer.sharded=true", "engine=continuous_batching"],
            "ContinuousBatching generates in one of them; set `engine=own`.",
        ),
        (["trainer.sharded=true", "trainer.accelerator=cpu"], "`trainer.accelerator` is 'cpu', and `trainer=fsdp`"),
        (["tracking.project=a/b"], "`tracking.project`"),
        (["engine.merge_adapter=perhaps"], "`engine.merge_adapter` is 'perhaps'"),
        (["engine=continuous_batching", "+engine.pages=3"], "`engine.pages` is unknown"),
        (["engine=vllm", "engine.max_lora_rank=12"], "`engine.max_lora_rank` is 12"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said) as error:
        built(tmp_path, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.adapter=/nowhere"], "no folder /nowhere for adapter"),
        (["target.checkpoint.path=/nowhere"], "no folder /nowhere for model"),
        (["base=atlas_neox"], "made for atlas/llama, not for 'atlas_neox'"),
        (["base=atlas_neox", "teacher.same_base=false"], "does not fit 'atlas_neox'"),
        (["target.checkpoint.dtype=int3"], "dtype 'int3'"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(tmp_path, overrides, said):
    with pytest.raises(ModelError, match=said):
        built(tmp_path, *overrides).check_models()


def test_every_stage_generates_with_the_engine_that_is_set(tmp_path):
    assert built(tmp_path).engine == OwnLoop()
    made = built(tmp_path, "engine=continuous_batching")
    users = (made, made.stages.expand.writer, made.stages.answer, made.stages.train, made.evaluator)
    assert {ContinuousBatching()} == {user.engine for user in users}
    without = {key: value for key, value in composed().items() if key != "engine"}  # a run of before it could be set
    assert experiment.build(without, tmp_path).engine == OwnLoop()


def test_an_engine_is_part_of_the_key_of_texts_and_not_of_scores(tmp_path):
    own, paged = (built(tmp_path, *given).stages for given in ([], ["engine=continuous_batching"]))
    assert cache_key(own.score) == cache_key(paged.score)
    for stage in ("expand", "answer", "train"):
        assert cache_key(getattr(own, stage)) != cache_key(getattr(paged, stage))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.merge_adapter=true", "target.checkpoint.device_map=auto"], "cannot copy 'atlas_neox'"),
        (
            ["engine=continuous_batching", "base.checkpoint.attention=flex_attention"],
            "'atlas_llama' has attention 'flex_attention'",
        ),
    ],
)
def test_an_engine_that_cannot_speak_with_a_model_is_refused_before_anything_loads(
    tmp_path, overrides, said, monkeypatch
):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(TskdError, match=said):
        built(tmp_path, *overrides).check_models()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training=token_weighted", "training.objective.fraction=0"], "`training.objective.fraction` is 0"),
        (["training=token_weighted", "training.objective.fraction=1.1"], "`training.objective.fraction` is 1.1"),
        (["training=soft_labels", "training.objective.weight=-1"], "`training.objective.weight` is -1"),
        (["training=soft_labels", "training.objective.top=0"], "`training.objective.top` is 0"),
        (["training=dora", "training.lora.rank=0"], "`training.lora.rank` is 0"),
        (["training.objective=token_weighted"], "`training.objective` is 'token_weighted'; name a class"),
        (["training.objective={_target_:tskd.Nope}"], "names no class"),
    ],
)
def test_a_wrong_objective_is_one_line_that_names_it(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        built(tmp_path, *overrides)


def test_a_kernel_that_the_device_cannot_run_is_refused_before_any_weights_are_loaded(tmp_path):
    made = built(tmp_path, "training.lora.fused_loss=true", "trainer.accelerator=cpu")
    with pytest.raises(ConfigError, match="`fused_loss` needs CUDA .*the device is cpu"):
        made.check_models()
    assert not any(model.weights.is_loaded for model in made.models.values())


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            {"seeds": "word " * 200},
            "The longest seed, with a response of 9 tokens, needs [0-9]+ tokens, and atlas_.* has",
        ),
        ({"held_out": "word " * 200}, "The longest held-out question, with 9 new tokens, needs [0-9]+ tokens"),
        ({"draft": 250}, "The longest request for a new prompt, with 2 seeds to go on from and 250 new tokens,"),
    ],
)
def test_what_does_not_fit_a_model_is_said_before_any_weights_are_loaded(tmp_path, texts, said, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for name in ("seeds", "held_out"):
        lines = [texts.get(name, "a question?"), "another question?"]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": line, "answer": "x"}) + "\n" for line in lines)
        )
    files = [f"task.{name}={tmp_path / name}.jsonl" for name in ("seeds", "held_out")]
    made = built(
        tmp_path, "task=files", *files, "task.response_tokens=9", f"expansion.max_new_tokens={texts.get('draft', 9)}"
    )
    with pytest.raises(ModelError, match=said):
        made.check_models()


def test_a_rule_of_ones_own_is_a_dataclass_named_by_its_target(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class KeepNone:\n"
        "    threshold: float\n"
        "class Bare:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = built(tmp_path, "selection._target_=my_rules.KeepNone", "threshold=0.3", "allow=my_rules")
    assert ("KeepNone", 0.3) == (type(made.stages.select.rule).__name__, made.stages.select.rule.threshold)
    with pytest.raises(ConfigError, match="which is no dataclass"):
        built(tmp_path, "selection._target_=my_rules.Bare", "allow=[other,my_rules]")


def test_only_the_types_of_what_is_set_need_be_known(tmp_path, monkeypatch):
    (tmp_path / "my_kinds.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from nowhere import Model\n"
        "@dataclass(frozen=True)\n"
        "class Base:\n"
        "    model: Model\n"
        "    size: int\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Base):\n"
        "    name: str = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("my_kinds").Mine
    assert kind(model=None, size=3) == schema.make(kind, {"size": "3"}, "x", model=None)
    with pytest.raises(ConfigError, match="`x.size` is 'big': .*`x.name` is 1: .*`x.model` is missing") as error:
        schema.make(kind, {"size": "big", "name": 1}, "x")
    assert len(error.value.args) == 3


def test_an_adapter_for_fewer_layers_is_refused(tmp_path):
    base = tiny.save_model(tmp_path / "m" / "same-name")
    adapter = tiny.save_adapter(base, tmp_path / "adapter")
    deeper = tiny.save_model(tmp_path / "n" / "same-name", layers=3)
    with pytest.raises(ModelError, match="changes 2 layers, and 'same-name' .* has 3"):
        tiny.weights(deeper).check_adapter(str(adapter))
    wider = tiny.save_model(tmp_path / "o" / "same-name", width=64)
    with pytest.raises(ModelError, match=r"has shape \[.*\], the model needs"):
        tiny.weights(wider).check_adapter(str(adapter))
    tiny.weights(base).check_adapter(str(adapter))


def test_folder_names_are_short_safe_and_distinct():
    assert atomic_files.short_name("target=llama3,threshold=0.5") == "target=llama3,threshold=0.5"
    first, second = (atomic_files.short_name(f"path=/a/{end}" + "x" * 200) for end in ("b", "c"))
    assert first != second
    assert max(map(len, (first, second))) <= 100
    assert "/" not in first
    assert atomic_files.short_name("a/b") != atomic_files.short_name("a_b")
    assert atomic_files.short_name("", 3) == "3"
