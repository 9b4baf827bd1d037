"""One source of defaults: the classes hold them, and the options of conf/ repeat them or state a difference."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from tskd import moved
from tskd.config import hydra_plugins, schema
from tskd.config.build import LENGTHS_AND_EPOCHS
from tskd.models.checkpoint import Checkpoint
from tskd.modules.lora import LoraSettings
from tskd.modules.trainer import LightningTrainer
from tskd.stages.coverage import Covered
from tskd.stages.teacher import Finetuned, TeacherLora, TeacherReplay
from tskd.stages.train import Replay, TrainLora
from tskd.tracking.wandb import Wandb

CONF = Path(hydra_plugins.folder())
ROLES = ("base", "base_for_scoring", "target")  # a checkpoint and, for the target, a learning rate
GROUPS = ("base", "teacher", "base_for_scoring", "target", "task", "expansion", "answer", "selection")
GROUPS = (*GROUPS, "selection/screen", "training", "trainer", "engine", "tracking")
KINDS = {
    "": schema.Schema,
    "stop": Covered,
    "teacher": Finetuned,
    "teacher.lora": TeacherLora,
    "teacher.replay": TeacherReplay,
    "training": TrainLora,
    "training.lora": LoraSettings,
    "training.replay": Replay,
    "trainer": LightningTrainer,
    "tracking": Wandb,
}
NOT_A_FIELD = {  # read before the class is made
    "training": {"each_iteration"},
    "teacher": {"adapter", "same_base", "checkpoint"},
    "task": set(LENGTHS_AND_EPOCHS),
    "selection": {"screen"},
}


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=False)


def options():
    for group in GROUPS:
        for file in sorted((CONF / group).glob("[a-z]*.yaml")):
            yield f"{group}={file.stem}"


def kind_of(node, where):
    """Return the class that is made of the settings at ``where``, or ``None`` if they are a plain value."""
    if where.endswith(".checkpoint"):
        return Checkpoint
    if where in KINDS or not isinstance(node, Mapping):
        return KINDS.get(where)
    return get_class(node["_target_"]) if "_target_" in node else None


def is_default(field, value):
    """Return whether ``value``, as YAML states it, is the field's default. A field without one takes any value."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default in (MISSING, "???") or value == "???" or "${" in str(value):
        return True
    if isinstance(default, type):
        return moved.find(value) is default
    if isinstance(value, list):
        return value == list(default)
    return value == (str(default) if isinstance(default, Path) else default)


def differences(node, where=""):
    """Yield each class of which ``node`` has settings, and those of its settings that are not its defaults."""
    nested = {key: f"{where}.{key}".removeprefix(".") for key in node}
    nested = {key: place for key, place in nested.items() if place in ROLES or kind_of(node[key], place)}
    if where not in ROLES:
        kind = kind_of(node, where)
        known = {field.name: field for field in fields(kind)}
        assert node.keys() - known.keys() <= {"_target_"} | NOT_A_FIELD.get(where, set())
        stated = {key: value for key, value in node.items() if key in known and key not in nested}
        yield kind, {f"{where}.{key}": value for key, value in stated.items() if not is_default(known[key], value)}
    for key, place in nested.items():
        if isinstance(node[key], Mapping):
            yield from differences(node[key], place)


def test_the_default_options_state_the_defaults_of_the_classes():
    found = [(kind, stated) for kind, stated in differences(composed()) if kind is not Checkpoint]
    assert len(found) > 10
    assert [] == [(kind.__name__, stated) for kind, stated in found if stated]


def test_how_a_checkpoint_is_loaded_is_the_default_of_its_class():
    known = {field.name: field for field in fields(Checkpoint)}
    stated = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "_loading.yaml"))
    assert set(known) - {"name", "path", "sharded"} == set(stated)
    assert [] == [key for key, value in stated.items() if not is_default(known[key], value)]


def test_each_class_has_an_option_that_states_its_defaults():
    found = defaultdict(list)
    for option in options():
        for kind, stated in differences(composed(option)):
            # The root's settings are those of `conf/config.yaml`; a selection may set `threshold`.
            found[kind].append({} if kind is schema.Schema else stated)
    found.pop(Checkpoint)
    assert len(found) > 30
    assert {} == {kind.__name__: min(stated, key=len) for kind, stated in found.items() if {} not in stated}


def inherited(file):
    """Merge the options of its own folder that ``file`` builds on."""
    names = OmegaConf.load(file).get("defaults", [])
    parents = [file.with_name(f"{name}.yaml") for name in names if isinstance(name, str) and name != "_self_"]
    return OmegaConf.merge(*(OmegaConf.merge(inherited(parent), OmegaConf.load(parent)) for parent in parents), {})


def repeated(own, parent, where=""):
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(parent.get(key), Mapping):
            yield from repeated(value, parent[key], f"{where}{key}.")
        elif key != "defaults" and key in parent and value == parent[key]:
            yield f"{where}{key}"


INHERITING = [
    file
    for group in ("model", *GROUPS)
    for file in sorted((CONF / group).glob("[a-z]*.yaml"))
    if any(isinstance(name, str) and name != "_self_" for name in OmegaConf.load(file).get("defaults", []))
]


@pytest.mark.parametrize("file", INHERITING, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_an_option_that_inherits_states_only_differences(file):
    own, parent = (OmegaConf.to_container(each, resolve=False) for each in (OmegaConf.load(file), inherited(file)))
    assert parent.keys() - {"defaults"}
    assert [] == list(repeated(own, parent))
