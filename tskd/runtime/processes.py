"""Several processes for one run: the first runs it, and the others help it with what is computed on models.

``torchrun --nproc_per_node 4 -m tskd.run trainer=ddp …`` starts them. Everything but the model passes (files, W&B, the
algorithm) happens in the first process alone. A function marked ``everywhere`` is called with the same arguments in all
of them: prediction passes share the batches out and gather what was found, training adds up the gradients of each
process's share of a step. Weights travel as the name of their checkpoint, so the processes must see the same files.

A process that fails notes why in the store that torchrun keeps. A thread in each of them looks there twice a second and
ends the others, which breaks off what the first one waits for: whoever fails, and wherever, it ends with that line.
That one was killed shows when another talks to it; of torchrun itself, in the store. The first alone heeds signals.
Under ``trainer=fsdp`` each pass of a model is a collective call, and all processes must make as many of them: they are
then *in step*, and one with less to do repeats something, whose result counts for nothing.
"""

import importlib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from tskd.errors import ModelError, TskdError
from tskd.runtime import interrupts

log = logging.getLogger(__name__)
Called = TypeVar("Called", bound=Callable[..., Any])
PATIENCE = timedelta(days=7)  # the others have nothing to do while the first grades answers, or writes files
FAREWELL = timedelta(minutes=1)  # how long the first process may take to end, once another one has failed
LOOK_EVERY = 0.5  # seconds
FAILED, ENDED = "tskd/failed", "tskd/ended"  # in the store: why, and that the first process has nothing more to do
_store: Any = None  # torchrun's, which lives as long as any process
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
    global _store
    if count() == 1:
        main()
        return
    _store, _, _ = next(iter(rendezvous("env://")))
    dist.init_process_group("gloo", timeout=PATIENCE, store=_store, rank=rank(), world_size=count())
    watch = Thread(target=_watch, args=[_store.clone()], daemon=True)
    watch.start()
    try:
        if rank() == 0:
            try:
                main()
            finally:
                try:
                    if not _store.check([FAILED]):
                        _tell(None)
                finally:
                    _store.set(ENDED, "")  # even if another one was killed, or the watch below would wait for it
        else:
            for each in interrupts.SIGNALS:  # torchrun hands them to all; the first heeds them, and ends the others
                signal.signal(each, signal.SIG_IGN)
            with suppress(Exception):  # it is noted, and the first process tells it
                _serve()
    finally:
        watch.join()  # Python aborts where it ends while a thread is within the store
    if dist.is_initialized():  # not where one has failed
        dist.destroy_process_group()


def _serve() -> None:
    global _is_in_call
    _is_in_call = True  # what is called within a call is called in all processes anyway
    while True:
        with _answering_for_failures():
            if (call := _tell()) is None:
                return
            module, name, args, kwargs = call
            getattr(importlib.import_module(module), name).__wrapped__(*args, **kwargs)


def _watch(store: Any) -> None:
    """Let nothing wait for a process that has failed, or outlive torchrun."""
    try:
        while not store.check([FAILED]):
            if store.check([ENDED]):
                return
            time.sleep(LOOK_EVERY)
    except dist.DistNetworkError:  # its processes are sessions of their own, and nobody else would end them
        os._exit(1)
    if rank() > 0:
        os._exit(0)  # with an error's number, torchrun would end the first process before it has told the cause
    if dist.is_initialized():  # what runs on a GPU does not notice that the others are gone; there it is not tried yet
        dist.distributed_c10d._abort_process_group()
    try:
        store.wait([ENDED], FAREWELL)
    except dist.DistStoreError:
        print(store.get(FAILED).decode(), file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def _answering_for_failures() -> Iterator[None]:
    """Note an exception, for all processes to end; raise it, or in its place the one that has been noted before."""
    try:
        yield
    except BaseException as error:
        known = isinstance(error, TskdError)
        if rank() > 0 and not known and not _store.check([FAILED]):
            log.exception("Process %d of %d failed.", rank(), count())
        line = str(error) if known else " ".join(f"{type(error).__name__}: {error}".split())
        mine = f"Process {rank()} of {count()} failed: {line}"
        if lost := "/gloo/" in line:
            mine = f"One of {count()} processes has ended without a word: killed, perhaps for want of memory."
        noted = _store.compare_set(FAILED, "", mine).decode()
        # What another's end has done to this one.
        if (lost or noted != mine) and not known and isinstance(error, Exception):
            raise ModelError(noted) from error
        raise


def everywhere(without: Sequence[str] = ()) -> Callable[[Called], Called]:
    """Let all processes call the function where the first one calls it, there with ``None`` for those ``without``."""

    def decorate(function: Called) -> Called:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            global _is_in_call
            if count() == 1 or _is_in_call:
                return function(*args, **kwargs)
            theirs = {name: None if name in without else value for name, value in kwargs.items()}
            with _answering_for_failures():
                _tell((function.__module__, function.__name__, args, theirs))
                _is_in_call = True
                try:
                    return function(*args, **kwargs)
                finally:
                    _is_in_call = False

        return call  # type: ignore[return-value]

    return decorate


def share(batches: Sequence[Any], in_step: bool = False) -> list[Any]:
    """This process's part of ``batches``; together, the processes have each once. In step, all parts are of one length.

    What makes up for a missing batch is the first one again, with the same result.
    """
    mine = list(batches[rank() :: count()])
    return mine + list(batches[:1]) * (math.ceil(len(batches) / count()) - len(mine)) if in_step else mine


def gathered(found: dict[int, Any]) -> dict[int, Any]:
    """What all processes have ``found``, together."""
    if count() == 1:
        return found
    of_all: list[Any] = [None] * count()
    dist.all_gather_object(of_all, found)
    return {index: value for each in of_all for index, value in each.items()}


def largest(number: int) -> int:
    """The largest ``number`` that a process gives; all have to call this."""
    if count() == 1:
        return number
    told = torch.tensor(number)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def add_up(parameters: Sequence[Tensor], loss: float) -> float:
    """Add up the gradients and the losses of all processes, in place and as the result."""
    if count() == 1:
        return loss
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    told = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(told)
    flat = torch.cat([gradient.flatten().float() for gradient in gradients]).cpu()
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter)
    return float(told)


def _tell(call: Any = None) -> Any:
    told = [call]
    dist.broadcast_object_list(told, src=0)
    return told[0]
