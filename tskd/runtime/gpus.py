"""A GPU for each of the jobs that run at the same time on this machine (``hydra/launcher=gpus``)."""

import getpass
import os
import tempfile
import time
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

claimed: int | None = None  # the number, for torch, of the GPU that this process has claimed
_held: FileLock | None = None


def names() -> list[str]:
    """The GPUs that this process sees, in torch's order, by what ``CUDA_VISIBLE_DEVICES`` calls them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    return list(takewhile(lambda name: name and name != "-1", map(str.strip, visible.split(","))))


def claim() -> str | None:
    """Have one GPU to oneself, and return its name; waits for one to be free. ``None`` where there is none.

    It is held until the process ends, for what CUDA has set up on it stays as long; the next job of the same process
    has it too. ``CUDA_VISIBLE_DEVICES`` is left as it is: libraries that are imported by now may have started CUDA.
    """
    global claimed, _held
    there = names()
    folder = Path(tempfile.gettempdir()) / f"tskd-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    while there and claimed is None:
        for number, name in enumerate(there):
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            claimed, _held = number, lock
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(number)
            break
        else:
            time.sleep(1)
    return None if claimed is None else there[claimed]
