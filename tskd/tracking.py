"""One Weights & Biases run per job: a row per iteration, the step losses, and the final numbers.

Tracking never fails a job: without a key or a network it goes on offline, and if that fails too, without a record.
Prompts, responses and adapters leave the machine only when asked; they are what the method exists to protect.
"""

import logging
import math
import netrc
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlparse

from pydantic import PositiveFloat

from tskd.errors import ConfigError
from tskd.records import Scored

log = logging.getLogger(__name__)
logging.getLogger("wandb").setLevel(logging.CRITICAL)  # what matters of its complaints is in our one line

Numbers = Mapping[str, float | int | None]
PER_ITERATION = ("prompts/*", "score/*", "select/*", "eval/*", "cost/*", "train/loss", "train/examples")


@dataclass(frozen=True)
class Wandb:
    """Where runs are recorded. ``auto`` is online where a key is found, else offline; ``timeout`` is in seconds."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "tskd"
    entity: str | None = None
    log_text: bool = False
    log_adapter: bool = False
    timeout: PositiveFloat = 20.0

    def __post_init__(self) -> None:
        if not self.project or re.search(r"[/\\#?%:]", self.project):
            raise ConfigError(f"`tracking.project` is {self.project!r}; it must be a name without / \\ # ? % and :.")

    def open(
        self,
        folder: Path,
        *,
        name: str,
        group: str,
        job_type: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        run_id: str | None = None,
    ) -> "Tracker":
        """Start a run whose files lie in ``folder``. Always returns a tracker; at worst one that records nothing."""
        identity = {
            "project": self.project,
            "entity": self.entity,
            "name": name[:128],
            "group": group[:128],
            "job_type": job_type,
            "tags": [tag[:64] for tag in tags if tag],
            "config": dict(config),
            "id": run_id,
            "dir": str(folder),
            "reinit": "finish_previous",  # without it, the second job of a sweep would log into the first one's run
        }
        return Tracker(self, self._start(folder, identity))

    def _start(self, folder: Path, identity: dict[str, Any]) -> Any:
        mode = self._mode()
        if mode == "disabled":
            return None
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # crash reports go to a third party
        for kind in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
            os.environ[f"WANDB_{kind}_DIR"] = str(folder / "wandb")
        reason = "no key was found"
        try:
            import wandb

            settings = wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                init_timeout=self.timeout,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_transaction_log_flush_interval=1.0,
            )
            if mode == "online":
                try:
                    return wandb.init(mode="online", settings=settings, **identity)
                except Exception as error:  # noqa: BLE001 (tracking must never fail a job)
                    reason = " ".join(str(error).split())[:200]
            run = wandb.init(mode="offline", settings=settings, **identity)
            where = Path(run.dir).parent
            log.warning("Weights & Biases: offline (%s); to upload, `wandb sync %s`.", reason, where)
            return run
        except Exception as error:  # noqa: BLE001
            log.warning("Weights & Biases is off: %s", " ".join(str(error).split())[:200])
            return None

    def _mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        wish = os.environ.get("WANDB_MODE", "")
        if wish in ("online", "offline", "disabled"):
            return wish
        return "online" if _has_key() else "offline"


class Tracker:
    """An open run, or none. As a context manager it is finished with exit code 1 where the body raises."""

    def __init__(self, settings: Wandb, run: Any) -> None:
        self._settings = settings
        self._run = run
        self._steps = 0
        if run is not None:
            self._safely(self._define_metrics)

    @property
    def run_id(self) -> str | None:
        return None if self._run is None else str(self._run.id)

    def iteration(self, index: int, row: Numbers, scored: Sequence[Scored], kept: Collection[str]) -> None:
        """One row of numbers under step ``index``, with the histogram of finite gaps; the texts too, where asked."""

        def send() -> None:
            import wandb

            data: dict[str, Any] = {"iteration": index, **_present(row)}
            gaps = [example.gap for example in scored if math.isfinite(example.gap)]
            if gaps:
                data["score/gap"] = wandb.Histogram(gaps)
            if self._settings.log_text:
                columns = ["prompt", "response", "base_ppl", "teacher_ppl", "gap", "kept"]
                rows = [
                    [
                        e.response.prompt.text,
                        e.response.text,
                        e.base_ppl,
                        e.teacher_ppl,
                        e.gap,
                        e.response.prompt.id in kept,
                    ]
                    for e in scored
                ]
                data["score/examples"] = wandb.Table(columns=columns, data=rows)
            self._run.log(data)

        self._safely(send)

    def step(self, iteration: int, step: int, loss: float) -> None:
        """The loss of one training step; ``step`` counts within the iteration, W&B's counter across all of them."""
        self._steps += 1
        data = {"iteration": iteration, "train/step": self._steps, "train/step_loss": loss}
        self._safely(lambda: self._run.log(data))

    def adapter(self, index: int, folder: Path) -> None:
        """Upload the adapter's folder as an artifact, where asked."""
        if not self._settings.log_adapter:
            return

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(f"adapter-{self._run.id}", "adapter", metadata={"iteration": index})
            artifact.add_dir(str(folder), policy="immutable")
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
        self._safely(lambda: self._run.finish(exit_code=0 if kind is None else 1))
        self._run = None

    def _define_metrics(self) -> None:
        self._run.define_metric("iteration", hidden=True)
        for pattern in PER_ITERATION:
            self._run.define_metric(pattern, step_metric="iteration")
        self._run.define_metric("train/step", hidden=True)
        self._run.define_metric("train/step_loss", step_metric="train/step")

    def _safely(self, send: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            send()
        except Exception as error:  # noqa: BLE001
            log.warning("Weights & Biases has stopped recording: %s", " ".join(str(error).split())[:200])
            self._run = None


def _present(row: Numbers) -> dict[str, float | int]:
    return {key: value for key, value in row.items() if value is not None}


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        file = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known == host or "wandb" in known for known in file.hosts)
