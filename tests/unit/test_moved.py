"""Names of earlier versions still mean what they meant."""

import importlib
import subprocess
import sys

import pytest

from tskd import moved
from tskd.config import saved
from tskd.config.build import build
from tskd.engines.own import OwnLoop
from tskd.storage.run_folder import RunFolder


def test_a_target_of_an_earlier_version_is_found():
    assert moved.find("tskd.modules.generator.OwnLoop") is OwnLoop
    with pytest.raises(AttributeError):
        moved.find("tskd.modules.generator.Nothing")
    with pytest.raises(ImportError):
        moved.find("tskd.nothing.Nothing")


def test_a_moved_class_is_no_difference_between_two_configurations():
    old, new = (
        {"engine": {"_target_": name}} for name in ("tskd.modules.generator.OwnLoop", "tskd.engines.own.OwnLoop")
    )
    assert [] == saved.differences(old, new) == saved.differences(new, old)
    assert ["engine._target_"] == saved.differences(old, {"engine": {"_target_": "tskd.engines.vllm.Vllm"}})


def test_a_module_of_an_earlier_version_can_be_imported():
    code = "from tskd.artifacts import RunFolder; from tskd.compose import build; from tskd.models import LanguageModel"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert importlib.import_module("tskd.artifacts").RunFolder is RunFolder
    assert importlib.import_module("tskd.compose").build is build


@pytest.mark.parametrize("new", sorted({new for names in moved.MOVED.values() for new in names}))
def test_every_new_name_exists(new):
    if new == "tskd.config.search_trials":
        pytest.importorskip("optuna")
    importlib.import_module(new)
