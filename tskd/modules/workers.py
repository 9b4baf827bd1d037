"""Several processes for one run: the first runs it, and the others help it with what is computed on models.

``torchrun --nproc_per_node 4 -m tskd.run trainer=ddp …`` starts them. Everything but the model passes (files, W&B, the
algorithm) happens in the first process alone. A function marked ``everywhere`` is called with the same arguments in all
of them: prediction passes share the batches out and gather what was found, training adds up the gradients of each
process's share of a step. Weights travel as the name of their checkpoint, so the processes must see the same files.
"""

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tskd.errors import ModelError, TskdError

log = logging.getLogger(__name__)
Called = TypeVar("Called", bound=Callable[..., Any])
PATIENCE = timedelta(days=7)  # the others have nothing to do while the first evaluates, or makes a teacher
_is_in_call = False


def rank() -> int:
    """The number of this process: 0 is the one that runs, and the only one where there are no others."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def together(main: Callable[[], None]) -> None:
    """Call ``main`` in the first process; the others do what it does on models, until it ends."""
    if count() == 1:
        main()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    if rank() == 0:
        try:
            main()
        finally:
            _tell(None)
    else:
        _serve()
    dist.destroy_process_group()


def _serve() -> None:
    while (call := _tell()) is not None:
        module, name, args, kwargs = call
        function = getattr(importlib.import_module(module), name)
        try:
            function.__wrapped__(*args, **kwargs)
        except TskdError:
            pass  # the first process has the same one, and reports it
        except Exception:
            log.exception("Process %d of %d failed.", rank(), count())


def everywhere(without: Sequence[str] = ()) -> Callable[[Called], Called]:
    """Let all processes call the function where the first one calls it, there with ``None`` for those ``without``."""

    def decorate(function: Called) -> Called:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            global _is_in_call
            if count() == 1 or _is_in_call:
                return function(*args, **kwargs)
            theirs = {name: None if name in without else value for name, value in kwargs.items()}
            _tell((function.__module__, function.__name__, args, theirs))
            _is_in_call = True
            try:
                return function(*args, **kwargs)
            finally:
                _is_in_call = False

        return call  # type: ignore[return-value]

    return decorate


def share(batches: Sequence[Any]) -> list[Any]:
    """This process's part of ``batches``; together, the processes have each once."""
    return list(batches[rank() :: count()])


def gathered(compute: Callable[[], dict[int, Any]]) -> dict[int, Any]:
    """What ``compute`` finds in all processes together. Raises in all of them what it raises in one."""
    if count() == 1:
        return compute()
    try:
        found: dict[int, Any] | str = compute()
    except Exception as error:  # noqa: BLE001 (the others wait, and must hear of it)
        found = f"{error}"
        mine: Exception | None = error
    else:
        mine = None
    of_all: list[Any] = [None] * count()
    dist.all_gather_object(of_all, found)
    if mine is not None:
        raise mine
    for number, other in enumerate(of_all):
        if isinstance(other, str):
            raise ModelError(f"Process {number} of {count()} failed: {other}")
    return {index: value for each in of_all for index, value in each.items()}


def add_up(parameters: Sequence[Tensor], loss: float, failure: Exception | None) -> float:
    """Add up the gradients and the losses of all processes, in place and as the result; raise where one failed."""
    if count() == 1:
        if failure is not None:
            raise failure
        return loss
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    told = torch.tensor([loss, float(failure is not None)], dtype=torch.float64)
    dist.all_reduce(told)
    if told[1] > 0:
        failures: list[Any] = [None] * count()
        dist.all_gather_object(failures, None if failure is None else str(failure))
        if failure is not None:
            raise failure
        number, said = next((number, said) for number, said in enumerate(failures) if said is not None)
        raise ModelError(f"Training failed in process {number} of {count()}: {said}")
    flat = torch.cat([gradient.flatten().float() for gradient in gradients]).cpu()
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter)
    return float(told[0])


def _tell(call: Any = None) -> Any:
    told = [call]
    dist.broadcast_object_list(told, src=0)
    return told[0]
