"""The configuration of a run, as it was saved, and how it differs from another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from tskd import moved
from tskd.errors import ConfigError, RunFolderError
from tskd.runtime import processes

FREE = ("allow", "max_hours", "trainer.devices")  # settings of which a run may have others when it goes on


def of_run(folder: Path, *needed: str) -> DictConfig:
    """What the run in ``folder`` was made with, the ``needed`` groups at least.

    Raises ``RunFolderError`` where there is none, or it cannot be read.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise RunFolderError(f"{folder} holds no run: there is no {file.name} in it.")
    try:
        loaded: Any = OmegaConf.load(file)
        OmegaConf.resolve(loaded)
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error
    lacking = [] if isinstance(loaded, DictConfig) and loaded else ["settings"]
    lacking = lacking or [name for name in needed if loaded.get(name) is None]
    if lacking or not isinstance(loaded, DictConfig):
        raise RunFolderError(f"{file} has no {', '.join(lacking)}; take the file as the run has written it.")
    return loaded


def to_resume(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the resolved configuration with which the run in ``folder`` goes on.

    Raises:
        ConfigError: if one of ``overrides`` contradicts it.
        RunFolderError: if there is no run in ``folder``.
    """
    stored = of_run(folder)
    OmegaConf.update(stored, "trainer.devices", processes.count())  # what several processes began, one may end
    for override in overrides:
        key, _, value = override.partition("=")
        given = OmegaConf.create({"value": OmegaConf.from_dotlist([f"value={value}"])["value"]})["value"]
        found = OmegaConf.select(stored, key.lstrip("+"))
        if key in FREE:
            OmegaConf.update(stored, key, given)
        elif isinstance(found, DictConfig) or found != given:
            raise ConfigError(f"`{override}` contradicts the run in {folder}, where {key} is {found}; leave it out.")
    cfg: Any = OmegaConf.to_container(stored, resolve=True, throw_on_missing=True)
    if not any(override.startswith("allow=") for override in overrides):
        cfg["allow"] = []  # the folder may have come from elsewhere
    return cfg  # type: ignore[no-any-return]


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the dotted names of the settings that differ in a way that may change results.

    A class that has moved within the package since one of the two was written is the same class.
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        is_class = where.endswith("_target_") and isinstance(one, str) and isinstance(other, str)
        return [] if one == other or where in FREE or (is_class and moved.is_same(one, other)) else [where]
    keys = dict.fromkeys((*one, *other))
    return [
        name
        for key in keys
        for name in differences(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    ]


def resolved(cfg: DictConfig, is_sweep: bool = False, is_whole: bool = True) -> dict[str, Any]:
    """Plain values; where it need not be whole, what is missing is ``???``."""
    try:
        resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=is_whole)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(str(error).split())}; set it on the command line.") from error
    if is_sweep and resolved["trainer"]["devices"] != 1:
        raise ConfigError(
            f"`trainer.devices` is {resolved['trainer']['devices']} in a sweep; give each job one device and run "
            f"several jobs at once (`hydra/launcher=gpus`), or run without -m."
        )
    if resolved["allow"] and HydraConfig.initialized() and not _allowed_by_hand():
        raise ConfigError(
            f"`allow` is {resolved['allow']!r} in a file, which cannot allow itself; leave it out there, and if you "
            f"trust the code, add it on the command line."
        )
    return resolved  # type: ignore[no-any-return]


def _allowed_by_hand() -> bool:
    given = HydraConfig.get()
    in_sweep_of_file = "allow" in (given.sweeper.get("params") or {})
    return not in_sweep_of_file and any(each.lstrip("+").startswith("allow=") for each in given.overrides.task)
