"""Heavy libraries are imported when they are used, and an import changes nothing for the process that it runs in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "peft", "pytorch_lightning", "safetensors", "huggingface_hub", "wandb"}
LIGHT = (
    *("tskd", "tskd.run", "tskd.teach", "tskd.check", "tskd.plan"),
    *("tskd.config.hydra_plugins", "tskd.config.sweeps", "tskd.config.saved", "tskd.config.build", "tskd.experiment"),
    *("tskd.models.alignment", "tskd.models.checkpoint", "tskd.models.generation", "tskd.models.memory"),
    *("tskd.models.probes", "tskd.models.rehearsal", "tskd.models.templates", "tskd.models.weights"),
    *("tskd.runtime.gpus", "tskd.tracking.console", "tskd.tracking.wandb"),
)
SHOWN = f"""
import atexit, sys
atexit.register(lambda: print("heavy:", *sorted({HEAVY} & sys.modules.keys())))
"""
STATE = """
import logging, os, warnings
state = lambda: (logging.raiseExceptions, logging.root.level, list(warnings.filters), dict(os.environ))
before = state()
"""


def python(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("module", LIGHT)
def test_a_module_that_only_describes_models_imports_no_library_that_loads_them(module):
    assert "heavy:\n" == python(f"{SHOWN}import {module}").stdout


@pytest.mark.parametrize("module", ["tskd.run", "tskd.models.weights"])
def test_an_import_leaves_logging_warnings_and_environment_as_they_are(module):
    assert "same\n" == python(f"{STATE}import {module}\nprint('same' if state() == before else state())").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["training.lora.rnk=8"]], ids=["help", "misspelt"])
def test_help_and_a_misspelt_option_wait_for_no_heavy_library(arguments):
    done = python(f"{SHOWN}from tskd import run\nrun.main()", *arguments)
    assert "heavy:" == done.stdout.splitlines()[-1].strip()
    assert "rnk" in done.stderr if done.returncode else "Powered by Hydra" in done.stdout
