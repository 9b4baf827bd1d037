"""What tskd adds to Hydra: the callback of a job, the resolvers, the folder of the configuration."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from tskd.config.schema import Schema
from tskd.errors import ConfigError
from tskd.models import rehearsal
from tskd.runtime import gpus, secrets
from tskd.storage.atomic_files import short_name
from tskd.storage.status import completed

log = logging.getLogger(__name__)


def register() -> None:
    """Make schema and resolvers known to Hydra; may be called again."""
    ConfigStore.instance().store(name="schema", node=Schema)
    OmegaConf.register_new_resolver("started", _started, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("short", short_name, replace=True)
    OmegaConf.register_new_resolver("gpus", lambda: len(gpus.names()) or 2, replace=True)
    OmegaConf.register_new_resolver("rehearsal", _stand_in, replace=True)


def folder() -> str:
    """The folder of the configuration files, in a checkout and in an installed package."""
    here = Path(__file__).resolve().parents[1]
    for candidate in (here.parent / "conf", here / "conf"):
        if (candidate / "config.yaml").is_file():
            return str(candidate)
    raise ConfigError(f"No conf/config.yaml beside or in {here}; install tskd again.")


@cache
def shipped() -> dict[str, Any]:
    """Return the embedded world as it is shipped, resolved, without what a user has set for a machine."""
    register()
    has_hydra = GlobalHydra.instance().is_initialized()
    with nullcontext() if has_hydra else initialize_config_dir(folder(), version_base="1.3"):
        without_local = ["~local"] if Path(folder(), "local").is_dir() else []
        composed = compose("config", [*without_local, "store=off"])
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]


def _stand_in(architecture: str, name: str) -> str:
    return rehearsal.stand_in(architecture, short_name(name))


def _started() -> str:
    # Two sweeps that start in the same second must not share a folder.
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid():x}{token_hex(1)}"


@contextmanager
def leaving_nothing(name: str) -> Iterator[None]:
    """Have a configuration ``name``: the usual one, for which Hydra makes its folders where they are soon removed."""
    register()
    with tempfile.TemporaryDirectory(prefix=f"tskd-{name}-") as nowhere:
        folders = {"run": {"dir": nowhere}, "sweep": {"dir": nowhere}}
        ConfigStore.instance().store(name, {"defaults": ["config", "_self_"], "hydra": folders})
        yield


started: list[Path] = []  # the folder of the run or sweep that this process started
ROOM = 1 << 16  # bytes, more than Hydra writes before the job begins


class JobStatus(Callback):
    """Notes the folder before Hydra makes it, so that a folder that cannot be written is one line, not a traceback."""

    def __init__(self) -> None:
        survive_full_disk()  # Hydra makes a callback in each process of a command

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _open(config, Path(config.hydra.run.dir), "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        _open(config, folder, "hydra.sweep.dir")
        with read_write(config), open_dict(config):  # or a job with another `name` would be in another folder
            config.hydra.overrides.hydra.append(_place(folder))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        keep_files_private(config)  # in the process of a launcher too
        if config.hydra.runtime.choices["hydra/launcher"] == "gpus" and (gpu := gpus.claim()) is not None:
            log.info("This job has GPU %s.", gpu)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN and not completed(Path(config.hydra.runtime.output_dir)):
            # On a full disk, the next job of the sweep would end in Hydra's traceback.
            _check_room(Path(config.hydra.sweep.dir), "hydra.sweep.dir")


def survive_full_disk() -> None:
    """Keep logging from printing a traceback for each line that it cannot write."""
    logging.raiseExceptions = False


def begin_without_hydra(config: Mapping[str, Any]) -> None:
    """Set this process up for a job as Hydra does, with its log on the terminal alone."""
    keep_files_private(config)
    survive_full_disk()
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")


def keep_files_private(config: Mapping[str, Any] | DictConfig) -> None:
    """Let what this process and those that it starts write be readable by its owner alone, where that is set."""
    if config.get("private_files"):
        os.umask(0o077)


def _place(folder: Path) -> str:
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{quoted}'"


def _open(config: DictConfig, folder: Path, option: str) -> None:
    try:
        secrets.check_no_key(OmegaConf.to_yaml(config))  # before Hydra writes it down
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    keep_files_private(config)
    _check_room(folder, option)
    started[:] = [folder]


def _check_room(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(bytes(ROOM))
            probe.flush()
    except OSError as error:
        print(
            f"Cannot write to {folder}: {error.strerror}. Make room, or choose another with `{option}=`.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
