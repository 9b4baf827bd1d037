"""Features that never ran on their hardware are marked in the help, in the check and beside their option."""

from pathlib import Path

import pytest

from tests.unit.config.test_schema import composed
from tskd.config import hydra_plugins
from tskd.config.experimental import FEATURES, used

CONF = Path(hydra_plugins.folder())


def test_the_help_lists_every_feature():
    help_text = " ".join((CONF / "hydra" / "default.yaml").read_text().split())
    assert all(feature.option in help_text for feature in FEATURES)


@pytest.mark.parametrize("option", ["engine=vllm", "trainer=fsdp", "hydra/launcher=gpus", "hydra/launcher=slurm"])
def test_the_option_of_a_feature_says_that_it_is_experimental(option):
    assert option in [feature.option for feature in FEATURES]
    assert "Experimental:" in (CONF / f"{option.replace('=', '/')}.yaml").read_text()


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], []),
        (["trainer=fsdp"], ["trainer=fsdp"]),
        (["engine=vllm"], ["engine=vllm"]),
        (["training.lora.fused_loss=true"], ["training.lora.fused_loss=true"]),
        (["target.checkpoint.quantization=8bit"], ["quantization=4bit, 8bit"]),
        (["base.checkpoint.device_map=auto"], ["device_map=auto"]),
    ],
)
def test_what_a_configuration_uses_is_told(overrides, options):
    lines = used(composed(*overrides))
    assert len(lines) == len(options)
    assert all(line.startswith(f"`{option}` is experimental") for line, option in zip(lines, options, strict=True))


@pytest.mark.parametrize("launcher", ["gpus", "slurm"])
def test_the_launcher_of_a_sweep_is_told(launcher):
    assert [] == used(composed(), "basic")
    (line,) = used(composed(), launcher)
    assert line.startswith(f"`hydra/launcher={launcher}` is experimental")
