"""Find everything that is wrong with a configuration. Loads no weights, fetches nothing and leaves nothing on disk."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tskd.config import experimental, hydra_plugins, saved
from tskd.config.build import Run, attempt
from tskd.config.cost_estimate import LIGHTER, plan_run, unplannable
from tskd.errors import ModelError, TskdError, one_line
from tskd.models.checkpoint import adapter_folder, is_here
from tskd.models.memory import machine
from tskd.tracking.console import shown_bytes

Settings = Mapping[str, Any]
OF_MODELS = {"trainer", "engine", "base", "base_for_scoring", "target", "task", "teacher", "expansion"}


@dataclass
class Findings:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def hold(self, check: Callable[[], Any]) -> bool:
        """Whether ``check`` raises nothing; what it does raise is a problem, once."""
        try:
            check()
        except TskdError as error:
            self.add(error)
            return False
        return True

    def add(self, *errors: TskdError) -> None:
        """Add the lines of ``errors``, each once."""
        lines = dict.fromkeys(str(line) for error in errors for line in error.args)
        self.problems += [line for line in lines if line not in self.problems]


def findings(cfg: Settings, place: Path = Path("outputs"), launcher: str = "basic") -> Findings:
    """Return what is wrong with the run of a resolved configuration, whose folder would be made in ``place``.

    A group that is not in ``cfg`` is known to be wrong.
    """
    found, store = Findings(), cfg.get("store")
    if isinstance(store, str) and not Path(store).is_dir():
        cfg = {**cfg, "store": "off"}  # or it would be made
    with _without_hub() as was_offline:
        made = attempt(cfg, Path(), wrong=hydra_plugins.shipped().keys() - cfg.keys())
        found.add(*made.errors)
        run, wrong = made.run, made.wrong
        _of_tracking(run, found)
        found.notes += experimental.used(vars(run.settings), launcher)
        has_device = found.hold(lambda: run.trainer.device)
        here = {role for role in run.models if role not in wrong and _is_here(role, run, was_offline, found)}
        here = {role for role in here if found.hold(run.models[role].weights.check_loadable)}
        if has_device and not wrong & OF_MODELS and here == run.models.keys():
            is_right = [found.hold(check) for check in run.checks()]
            if all(is_right) and unplannable(run) is None:
                found.hold(lambda: _of_work(run, found))
        else:
            if {"base", "teacher"} <= here:
                found.hold(run.check_adapter)
            found.notes.append("Lengths and memory are not checked: that takes all models, and the rest to be right.")
        if has_device and here == run.models.keys():
            found.notes += run.advice()
        sizes = [0]
        if "target" in here:
            found.hold(lambda: sizes.append(_adapter_bytes(run)))
    _of_disk({"hydra.run.dir": place, "store": Path(str(store or "."))}, sizes[-1], found)
    return found


def findings_of_job(cfg: DictConfig) -> Findings:
    """Return what is wrong with the configuration that Hydra composed, required settings that are missing included."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    groups = {key.partition(".")[0] for key in missing}
    overridden = HydraConfig.get().overrides.hydra
    place = Path(HydraConfig.get().run.dir) if any(each.startswith("hydra.run.dir=") for each in overridden) else None
    found = Findings()
    try:
        settings = saved.resolved(cfg, is_whole=False)
        rest = {name: node for name, node in settings.items() if name not in groups}
        launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
        found = findings(rest, place or Path("outputs"), launcher)
    except TskdError as error:
        found.problems += map(str, error.args)
    found.problems[:0] = [f"`{key}` is missing; set it on the command line." for key in missing]
    return found


@contextmanager
def _without_hub() -> Iterator[bool]:
    """Nothing is fetched; yields whether nothing would have been anyway."""
    was_offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield was_offline
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _of_tracking(run: Run, found: Findings) -> None:
    server, tracking = run.tracking.server_without_key(), run.tracking
    if server is not None and tracking.mode == "online":
        found.problems.append(
            f"`tracking.mode` is online, and no key was found for {server}; set WANDB_API_KEY, or `tracking.mode=auto`."
        )
    elif server is not None:
        found.notes.append(f"W&B is offline: no key was found for {server}.")
    sent = [name for name in ("log_text", "log_adapter") if getattr(tracking, name)]
    if sent:
        found.notes.append(f"Private content goes to W&B: `tracking.{'` and `tracking.'.join(sent)}`.")


def _is_here(role: str, run: Run, was_offline: bool, found: Findings) -> bool:
    """Whether all of a model is on this machine; what follows from it not being is noted."""
    model, checkpoint = run.models[role], run.models[role].weights.checkpoint
    adapter = None if role == "teacher" and run.teacher_to_make is not None else model.adapter
    places: dict[str, Callable[[], Path]] = {checkpoint.path: lambda: model.weights.folder}
    if adapter is not None:
        places[adapter] = lambda: adapter_folder(adapter)
    away = list[str]()
    if not found.hold(lambda: away.extend(path for path, find in places.items() if not is_here(path, find))):
        return False
    for path in away:
        if was_offline:
            found.problems.append(f"`{role}` needs {path}, which is not on this machine, and HF_HUB_OFFLINE is set.")
        elif checkpoint.gated and get_token() is None:
            found.problems.append(
                f"`{role}` needs {path}, which is gated, and there is no token; accept its licence on the hub, then "
                f"`hf auth login`."
            )
        else:
            found.notes.append(f"`{role}` needs {path}, which is not on this machine; a run fetches it from the hub.")
    return not away


def _of_work(run: Run, found: Findings) -> None:
    made = plan_run(run)
    if made.end is not None:
        found.problems.append(made.end)
    device, there = machine(run.trainer.device)
    if (made.memory or 0) > there:
        found.problems.append(
            f"It takes about {shown_bytes(made.memory)} of memory, and {device} has {shown_bytes(there)}; {LIGHTER}."
        )


def _adapter_bytes(run: Run) -> int:
    """What the adapters of all iterations take on disk, in 32 bits. Raises ``ModelError`` where there can be none."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    name, model_config, lora = run.target.name, run.target.weights.config, getattr(run.stages.train, "lora", None)
    if lora is None:
        return 0  # nothing is trained
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(model_config)
        try:
            network = get_peft_model(bare, lora.lora_config())
        except ValueError as error:
            raise ModelError(f"LoRA cannot be put on {name!r}: {one_line(error)}") from error
    numbers = sum(each.numel() for name, each in network.named_parameters() if "lora_" in name)
    return 4 * numbers * (run.iterations if run.train_each_iteration else 1)


def _of_disk(places: Mapping[str, Path], needed: int, found: Findings) -> None:
    for option, path in places.items():
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        free = shutil.disk_usage(there).free
        if not there.is_dir() or not os.access(there, os.W_OK):
            found.problems.append(f"`{option}` is {path}, and {there} cannot be written to; choose another.")
        elif free <= needed:
            found.problems.append(
                f"`{option}` is {path}, where {shown_bytes(free)} are free, and the adapters take about "
                f"{shown_bytes(needed)}; make room, or choose another."
            )
