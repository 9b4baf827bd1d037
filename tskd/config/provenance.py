"""What a result was made with, beside its configuration: versions, hardware and the revisions that were resolved."""

import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import Any

from tskd.config.build import Run
from tskd.tasks import Benchmark

PACKAGES = ("tskd", "torch", "transformers", "peft", "pytorch-lightning", "lm-eval")


def of(run: Run) -> dict[str, Any]:
    """For ``provenance.json``. Nothing in it tells whose machine it is, or where."""
    import torch

    device = run.trainer.device
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "revisions": {role: model.weights.resolved_revision for role, model in run.models.items()},
        "task_note": run.task.note if isinstance(run.task, Benchmark) else "",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
