"""One Weights & Biases run per job: a row per iteration, the step losses, and the final numbers.

Tracking never fails a job: without a key or a network it goes on offline, and if that fails too, without a record.
A job that is continued goes on in the run that it had; ``wandb/logged.json`` in its folder says which, and how far.
Prompts, responses and adapters leave the machine only when asked; they are what the method exists to protect.
"""

import json
import logging
import math
import netrc
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import PositiveFloat, TypeAdapter

from tskd.errors import ConfigError
from tskd.records import Scored
from tskd.runtime.secrets import hidden
from tskd.storage import atomic_files

log = logging.getLogger(__name__)

Numbers = Mapping[str, float | int | None]
PER_ITERATION = ("prompts/*", "score/*", "select/*", "eval/*", "cost/*", "train/loss", "train/examples")
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


@dataclass(frozen=True, slots=True)
class Logged:
    """The run of a folder, and how much it has been told: whole iterations, and the training steps within them."""

    run_id: str  # empty before it has begun
    group: str
    job_type: str
    iterations: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Wandb:
    """Where runs are recorded. ``auto`` is online where a key is found, else offline, and heeds ``WANDB_MODE``.

    ``timeout`` is how many seconds the server may take, once at the start and once at the end.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "tskd"
    entity: str | None = None
    log_text: bool = False
    log_adapter: bool = False
    timeout: PositiveFloat = 20.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            raise ConfigError(
                f"`tracking.project` is {self.project!r}; it must be 1 to 128 characters long, without / \\ # ? % :."
            )

    def open(
        self,
        folder: Path,
        *,
        name: str,
        group: str,
        job_type: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
    ) -> "Tracker":
        """Start a run whose files lie in ``folder``. Always returns a tracker; at worst one that records nothing.

        Where ``folder`` has had a run, it goes on, in the group that it was started in.
        """
        logged = _logged(folder) or Logged("", group[:128], job_type[:64])
        identity = {
            "project": self.project,
            "entity": self.entity,
            "name": name[:128],
            "group": logged.group,
            "job_type": logged.job_type,
            "tags": list(dict.fromkeys(tag.strip()[:64] for tag in tags if tag.strip())),
            "config": dict(config),
            "id": logged.run_id or None,
            "resume": "allow" if logged.run_id else None,
            "dir": str(folder),
            "reinit": "finish_previous",  # without it, the second job of a sweep would log into the first one's run
        }
        run = None
        if self._wish() != "disabled":
            try:
                _note(folder, logged)  # where it cannot write, wandb would go to the system's temporary folder
                with _surroundings(folder):
                    run = self._start(identity)
            except Exception as error:  # noqa: BLE001
                log.warning("Weights & Biases is off: %s", _line(error))
        return Tracker(self, folder, run, logged)

    def _start(self, identity: Mapping[str, Any]) -> Any:
        import wandb

        server = wandb.setup().settings  # from the environment and the user's settings files
        settings = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            init_timeout=self.timeout,
            finish_timeout=self.timeout,
            finish_timeout_raises=True,
            host="",
            x_disable_meta=True,  # user, paths, command line
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=0.1,  # 15 seconds by default, which a killed job would lose
        )
        reason = ""
        if self._wish() != "offline":
            if not _has_key(server.base_url, server.api_key):  # without one, wandb would ask on a terminal
                reason = f"no key was found for {server.base_url}"
            else:
                try:
                    run = wandb.init(mode="online", settings=settings, **identity)
                    log.info("Weights & Biases: %s", run.url)
                    return run
                except Exception as error:  # noqa: BLE001
                    reason = _line(error)
                    wandb.teardown()  # lets go of the id, which the run that did not start still holds
        run = wandb.init(mode="offline", settings=settings, **identity)
        level = logging.WARNING if reason else logging.INFO
        log.log(level, "Weights & Biases: offline, as %s. %s", reason or "asked", _how_to_upload(run))
        return run

    def server_without_key(self) -> str | None:
        """The server that it will be offline from, though not asked to be, for want of a key."""
        if self._wish() in ("offline", "disabled"):
            return None
        import wandb

        server = wandb.setup().settings
        return None if _has_key(server.base_url, server.api_key) else str(server.base_url)

    def _wish(self) -> str:
        return MODES.get(os.environ.get("WANDB_MODE", ""), "auto") if self.mode == "auto" else self.mode


class Tracker:
    """An open run, or none. As a context manager it is finished with exit code 1 where the body raises."""

    def __init__(self, settings: Wandb, folder: Path, run: Any, logged: Logged) -> None:
        self._settings = settings
        self._folder = folder
        self._run = run
        self._works = run is not None
        self._logged = logged
        self._steps = logged.steps
        self._safely(self._begin)

    def iteration(self, index: int, row: Numbers, scored: Sequence[Scored], kept: Collection[str]) -> None:
        """One row of numbers under step ``index``, with the histogram of finite gaps; the texts too, where asked.

        An iteration that the run was told before it was continued is not told again.
        """
        if index < self._logged.iterations:
            return

        def send() -> None:
            import wandb

            data: dict[str, Any] = {"iteration": index, **_present(row)}
            gaps = [example.gap for example in scored if math.isfinite(example.gap)]
            if gaps:
                try:
                    data["score/gap"] = wandb.Histogram(gaps)
                except ValueError:  # numpy finds no 64 bins between gaps that differ in their last bits
                    log.debug("No histogram of gaps from %g to %g.", min(gaps), max(gaps))
            if self._settings.log_text:
                data["score/examples"] = wandb.Table(
                    columns=["prompt", "response", "base_ppl", "teacher_ppl", "gap", "kept"],
                    data=[
                        [prompt.text, e.response.text, e.base_ppl, e.teacher_ppl, e.gap, prompt.id in kept]
                        for e in scored
                        for prompt in [e.response.prompt]
                    ],
                )
            self._run.log(data)
            self._logged = replace(self._logged, iterations=index + 1, steps=self._steps)
            _note(self._folder, self._logged)

        self._safely(send)

    def step(self, iteration: int, step: int, loss: float) -> None:
        """The loss of one training step; ``step`` counts within the iteration, W&B's counter across all of them."""
        self._steps = self._logged.steps + step + 1
        data = {"iteration": iteration, "train/step": self._steps, "train/step_loss": loss}
        self._safely(lambda: self._run.log(data))

    def adapter(self, index: int, folder: Path) -> None:
        """The adapter's folder as an artifact, where asked. It must stay where it is until it is uploaded."""
        if not self._settings.log_adapter:
            return

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(f"adapter-{self._run.id}", "adapter", metadata={"iteration": index})
            artifact.add_dir(str(folder), policy="immutable", skip_cache=True)  # no second copy of it
            self._run.log_artifact(artifact, aliases=[f"iteration_{index}"])

        self._safely(send)

    def finish_with(self, summary: Numbers) -> None:
        """The final numbers, into the run's summary."""
        self._safely(lambda: self._run.summary.update(_present(summary)))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said = not self._works
        self._works = self._run is not None  # a run that stopped recording is finished all the same
        self._safely(lambda: self._run.finish(exit_code=0 if kind is None else 1), said)
        self._run, self._works = None, False

    def _begin(self) -> None:
        self._logged = replace(self._logged, run_id=self._run.id)
        _note(self._folder, self._logged)
        self._run.define_metric("iteration", hidden=True)
        for pattern in PER_ITERATION:
            self._run.define_metric(pattern, step_metric="iteration")
        self._run.define_metric("train/step", hidden=True)
        self._run.define_metric("train/step_loss", step_metric="train/step")

    def _safely(self, send: Callable[[], Any], said: bool = False) -> None:
        if not self._works:
            return
        try:
            with _surroundings(self._folder):
                send()
        except Exception as error:  # noqa: BLE001
            self._works = False
            if not said:
                log.warning("Weights & Biases has stopped: %s. %s", _line(error), _how_to_upload(self._run))


@contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """wandb keeps to ``folder``, is silent and reports its errors to nobody; what only environment variables say."""
    private = {f"WANDB_{kind.upper()}_DIR": str(folder / "wandb" / kind) for kind in ("data", "cache", "artifact")}
    changes = {**private, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _logged_file(folder: Path) -> Path:
    return folder / "wandb" / "logged.json"


def _logged(folder: Path) -> Logged | None:
    """What the run of ``folder`` was told, or None where it has none that can be read."""
    try:
        return TypeAdapter(Logged).validate_json(_logged_file(folder).read_bytes())
    except (OSError, ValueError):
        return None


def _note(folder: Path, logged: Logged) -> None:
    with atomic_files.replacing(_logged_file(folder)) as partial:
        partial.write_text(json.dumps(asdict(logged), indent=2) + "\n", encoding="utf-8")


def _present(row: Numbers) -> dict[str, float | int]:
    return {key: value for key, value in row.items() if value is not None}


def _how_to_upload(run: Any) -> str:
    folder = Path(run.dir).parents[1]  # of all that the run has recorded, also before it was continued
    return f"To upload: wandb sync {'' if run.offline else '--include-online '}{shlex.quote(str(folder))}"


def _line(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return hidden(said.splitlines()[0]).rstrip(".")[:200]


def _has_key(server: str, configured: str | None) -> bool:
    """Whether wandb would find credentials where it looks: the environment, its settings, ``.netrc``."""
    if configured or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    machine = urlsplit(server).netloc
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    file = next((place for place in map(os.path.expanduser, places) if os.path.exists(place)), None)
    if file is None:
        return False
    try:
        known = netrc.netrc(file)
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    # The public server answers to two names, and keys were stored under the older.
    names = [machine, "api.wandb.ai"] if machine == "api.forge.coreweave.com" else [machine]
    return any(entry[2] for entry in map(known.authenticators, names) if entry)
