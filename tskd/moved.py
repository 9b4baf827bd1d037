"""Names that have moved: old configurations, run folders and imports keep working.

``find`` imports what a dotted name stands for, under its new name if it has moved; ``_target_`` is read with it.
``from tskd.artifacts import RunFolder`` works too: ``install`` has Python ask here for a module that is gone.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# By the old module: the new ones, in which its names are looked for in this order.
MOVED: dict[str, tuple[str, ...]] = {
    "tskd.artifacts": ("tskd.storage.run_folder", "tskd.storage.atomic_files"),
    "tskd.checkpoints": ("tskd.models.checkpoint", "tskd.models.memory", "tskd.errors"),
    "tskd.compose": ("tskd.config.build",),
    "tskd.console": ("tskd.tracking.console",),
    "tskd.coverage": ("tskd.stages.coverage",),
    "tskd.evaluate": ("tskd.evaluation.answer_metrics", "tskd.metrics.accuracy"),
    "tskd.export": ("tskd.results.packaging", "tskd.results.finished_run", "tskd.results.model_card"),
    "tskd.faults": ("tskd.metrics.faults",),
    "tskd.identity": ("tskd.storage.fingerprint",),
    "tskd.jobs": ("tskd.config.sweeps", "tskd.storage.status", "tskd.config.hydra_plugins"),
    "tskd.metrics": ("tskd.metrics.iteration",),
    "tskd.models": ("tskd.models.weights", "tskd.models.memory", "tskd.models.probes"),
    "tskd.modules.batches": ("tskd.models.encoding",),
    "tskd.modules.continuous_batching": ("tskd.engines.continuous_batching",),
    "tskd.modules.engine": ("tskd.models.generation", "tskd.engines.engine"),
    "tskd.modules.generator": ("tskd.engines.own", "tskd.models.generation"),
    "tskd.modules.objectives": ("tskd.models.alignment",),
    "tskd.modules.served": ("tskd.engines.server", "tskd.stages.writers"),
    "tskd.modules.vllm": ("tskd.engines.vllm",),
    "tskd.perplexity": ("tskd.models.logprobs",),
    "tskd.search": ("tskd.config.search_trials",),
    "tskd.server": ("tskd.engines.client",),
    "tskd.teacher": ("tskd.stages.teacher",),
    "tskd.templates": ("tskd.models.templates",),
    "tskd.writers": ("tskd.stages.writers",),
}


def find(name: str) -> Any:
    """Import what a dotted name stands for.

    Args:
        name: such as ``tskd.stages.select.PplDifference``, or where that was in an earlier version.

    Raises:
        ImportError, AttributeError or ValueError: if neither the name nor a newer one for it exists.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        if module not in MOVED:
            raise
        return attributes_of(module)(attribute)


def is_same(one: str, other: str) -> bool:
    """Return whether two dotted names stand for one class, under an old and a new name."""
    for old, new in ((one, other), (other, one)):
        module, _, name = old.rpartition(".")
        if any(new == f"{moved}.{name}" for moved in MOVED.get(module, ())):
            return True
    return False


def attributes_of(old: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of the module that was called ``old``."""

    def attribute(name: str) -> Any:
        for new in MOVED[old] if not name.startswith("__") else ():
            found = getattr(importlib.import_module(new), name, None)
            if found is not None:
                return found
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return attribute


class _MovedModules(MetaPathFinder, Loader):
    """Stands in for a module that is gone. Python asks here last, so a module that exists is never replaced."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = attributes_of(module.__name__)  # type: ignore[method-assign]


def install() -> None:
    """Let old module names be imported; may be called again."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
