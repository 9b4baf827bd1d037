"""Mark what has never run on the hardware that it is for, and say what would promote it.

``check`` notes what a configuration uses of it, ``tskd.run --help`` lists it, and the options' YAML files repeat it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Feature:
    """One experimental feature.

    Args:
        option: what a user types to have it.
        never_run: the hardware, or the part of it, that it has not run on.
        promoted_by: the command whose success there would end the mark.
        is_used: whether a resolved configuration asks for it.
    """

    option: str
    never_run: str
    promoted_by: str
    is_used: Callable[[Settings], bool]

    def __str__(self) -> str:
        return f"`{self.option}` is experimental: not run on {self.never_run}. Promoted by: {self.promoted_by}."


def _checkpoints(settings: Settings) -> list[Settings]:
    nodes = [settings.get(role) for role in ("base", "base_for_scoring", "teacher", "target")]
    return [node["checkpoint"] for node in nodes if isinstance(node, Mapping) and node.get("checkpoint")]


def _is_sharded(settings: Settings) -> bool:
    return bool(settings["trainer"].get("sharded"))


FEATURES = (
    Feature(
        "engine=vllm",
        "a GPU",
        "`python -m tskd.run engine=vllm` on a GPU, whose greedy texts equal those of `engine=own`",
        lambda settings: str((settings.get("engine") or {}).get("_target_", "")).endswith(".Vllm"),
    ),
    Feature(
        "trainer=fsdp",
        "GPUs (on CPUs it has)",
        "tests/integration/test_processes.py with NCCL on two GPUs",
        _is_sharded,
    ),
    Feature(
        "training.lora.fused_loss=true",
        "CUDA",
        "tests/invariants/test_training.py with the fused loss on a GPU",
        lambda settings: bool(settings["training"].get("lora", {}).get("fused_loss")),
    ),
    Feature(
        "quantization=4bit, 8bit",
        "a GPU",
        "tests/unit/models/test_weights.py with bitsandbytes on a GPU",
        lambda settings: any(each.get("quantization", "none") != "none" for each in _checkpoints(settings)),
    ),
    Feature(
        "device_map=auto",
        "several GPUs",
        "a run whose base is larger than one GPU",
        lambda settings: any(each.get("device_map") not in (None, "cpu") for each in _checkpoints(settings)),
    ),
    Feature(
        "hydra/launcher=gpus",
        "GPUs (on CPUs it has)",
        "tests/integration/test_gpus.py on two GPUs",
        lambda settings: settings["hydra/launcher"] == "gpus",
    ),
    Feature(
        "hydra/launcher=slurm",
        "several nodes, or GPUs (on one node with CPUs it has)",
        "tests/integration/test_slurm.py on a cluster",
        lambda settings: settings["hydra/launcher"] == "slurm",
    ),
)


def used(settings: Settings, launcher: str = "basic") -> list[str]:
    """Return a line for each experimental feature that a job uses.

    Args:
        settings: the resolved configuration of the job.
        launcher: the option of ``hydra/launcher``, which is no part of that configuration.
    """
    asked = {**settings, "hydra/launcher": launcher}
    return [str(feature) for feature in FEATURES if feature.is_used(asked)]
