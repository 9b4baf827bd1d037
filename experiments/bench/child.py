"""Run measurements in processes, so that none leaves memory or caches to the next."""

import os
import signal
import subprocess
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class Killed(Exception):
    """What the system does to a process when memory runs out."""


def python(*arguments: str, threads: int, folder: Path | None = None) -> str:
    """What Python prints when it is run with ``arguments``.

    Raises ``Killed``, and where it fails otherwise, ``SystemExit`` with the end of what it said.
    """
    environment = os.environ | dict.fromkeys(THREADS, str(threads)) | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode == -signal.SIGKILL:
        raise Killed
    if ran.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout[-1000:]}{ran.stderr[-2000:]}")
    return ran.stdout
