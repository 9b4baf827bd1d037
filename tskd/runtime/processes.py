"""Run one experiment in several processes, as ``torchrun --nproc_per_node 4 -m tskd.run trainer=ddp …`` starts them.

1. Only rank 0 runs the algorithm: it alone writes files and metrics, and it alone handles signals.
2. A function marked ``on_all_ranks`` runs in every process when rank 0 calls it. The other ranks wait for these calls.
3. A call made inside such a call is local, because every process makes it already.
4. Arguments are pickled, and weights travel as the path of their checkpoint. All processes must see the same files.
5. Inside a call, ``shard`` divides the work, and the ``all_*`` functions combine it. They are collective: all processes
   make the same ones, in the same order.
6. Under ``trainer=fsdp`` each forward or backward pass is collective too. The processes are then *in step*: a process
   with less to do repeats a pass and ignores its result.
7. A failure in any process ends all of them with the line of the first cause, which the processes keep in torchrun's
   key-value store. A thread in each process looks there, and ends the process if another one has failed. That closes
   the connections of the process, so a process that waits for it raises an error, and then finds the cause.
8. A killed process leaves no line. A process that fails unexpectedly therefore asks first who is still alive.
9. If torchrun is killed, its store is gone, and every process ends.
"""

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
from typing import TYPE_CHECKING, Any, TypeVar

from tskd.errors import ModelError, TskdError
from tskd.runtime import interrupts

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
COLLECTIVE_TIMEOUT = timedelta(days=7)  # the other ranks wait while rank 0 grades answers or writes files
ALIVE_TIMEOUT = timedelta(seconds=10)  # for all processes to answer; torchrun kills those left after 30 seconds
ENDING_TIMEOUT = timedelta(minutes=1)  # for rank 0 to end after another process has failed
WATCH_SECONDS = 0.5
# Keys of the store: the first cause; that rank 0 has ended; that somebody asks who is alive (and, with a rank, "I am").
FAILED, ENDED, ALIVE = "tskd/failed", "tskd/ended", "tskd/alive"
_store: Any = None
_is_in_call = False


def rank() -> int:
    """Return the number of this process; 0 runs the algorithm."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launch(main: Callable[[], None]) -> None:
    """Run ``main`` in rank 0, and what it calls ``on_all_ranks`` in the other processes, until it ends.

    Raises:
        ModelError: In rank 0, if another process has failed. The message is the first cause.
    """
    global _store, torch, dist
    if count() == 1:
        main()
        return
    import torch  # a single process needs none here
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    _store = _connect()
    watch = Thread(target=_watch, args=[_connect()], daemon=True)
    watch.start()
    try:
        if rank() == 0:
            try:
                main()
            finally:
                try:
                    if not _store.check([FAILED]):
                        with _noting_failures():
                            _broadcast(None)
                finally:
                    _store.set(ENDED, "")  # even if that failed, because the watch waits for it
        else:
            for each in interrupts.SIGNALS:  # torchrun sends them to all processes
                signal.signal(each, signal.SIG_IGN)
            with suppress(Exception):  # it is in the store, and rank 0 raises it
                _serve()
    finally:
        watch.join()  # Python aborts if it ends while a thread is inside the store
    dist.destroy_process_group()


def on_all_ranks(without: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Let every process call the decorated function, at module level, when rank 0 calls it.

    Args:
        without: Keyword arguments that the other ranks get as ``None``, such as callbacks.

    Returns:
        A decorator. The caller gets the result of rank 0.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            global _is_in_call
            if count() == 1 or _is_in_call:
                return function(*args, **kwargs)
            theirs = {name: None if name in without else value for name, value in kwargs.items()}
            with _noting_failures():
                _broadcast((call, args, theirs))
                _is_in_call = True
                try:
                    return function(*args, **kwargs)
                finally:
                    _is_in_call = False

        return call  # type: ignore[return-value]

    return decorate


def shard(batches: Sequence[Any], in_step: bool = False) -> list[Any]:
    """Return this process's part of ``batches``; every batch is in the part of exactly one process.

    Args:
        batches: The same sequence in all processes.
        in_step: Pad shorter parts with the first batch, so that all parts have the same length.
    """
    mine = list(batches[rank() :: count()])
    return mine + list(batches[:1]) * (math.ceil(len(batches) / count()) - len(mine)) if in_step else mine


def all_gather(found: dict[int, Any]) -> dict[int, Any]:
    """Return the union of what all processes have ``found``."""
    if count() == 1:
        return found
    of_all: list[Any] = [None] * count()
    dist.all_gather_object(of_all, found)
    return {index: value for each in of_all for index, value in each.items()}


def all_reduce_max(number: int) -> int:
    """Return the largest ``number`` of all processes."""
    if count() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def all_reduce_gradients(parameters: Sequence["torch.Tensor"], loss: float) -> float:
    """Add up the gradients of all processes in place, and return the sum of their losses.

    Args:
        parameters: The same in all processes. A missing gradient counts as zero.
        loss: The part of the loss that this process has computed.
    """
    if count() == 1:
        return loss
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(total)
    flat = torch.cat([gradient.flatten().float() for gradient in gradients]).cpu()
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter)
    return float(total)


def _connect() -> Any:
    """Connect to the store that ``init_process_group`` has used: torchrun's, which outlives the processes."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False)  # type: ignore[attr-defined]


def _broadcast(call: Any) -> Any:
    """Send the ``call`` of rank 0 to the other ranks, and return it in all of them."""
    calls = [call]
    dist.broadcast_object_list(calls, src=0)
    return calls[0]


def _serve() -> None:
    """Make each call of rank 0 until it sends none."""
    global _is_in_call
    _is_in_call = True
    while True:
        with _noting_failures():
            if (received := _broadcast(None)) is None:
                return
            call, args, kwargs = received
            call(*args, **kwargs)


def _watch(store: Any) -> None:
    """End this process if another one has failed or torchrun is gone; until then, answer who asks if it is alive.

    ``os._exit`` is the only way: the main thread may wait in a collective call, which no exception can reach.
    """
    try:
        while not store.check([FAILED]):
            if store.check([ENDED]):
                return
            if store.check([ALIVE]):
                store.set(f"{ALIVE}/{rank()}", "")
            time.sleep(WATCH_SECONDS)
        if rank() > 0:
            os._exit(0)  # after any other code, torchrun would end rank 0 before it has recorded the cause
        line = store.get(FAILED).decode()
        store.wait([ENDED], ENDING_TIMEOUT)
    except dist.DistStoreError:  # rank 0 has not noticed, perhaps in a GPU kernel (never tried)
        print(line, file=sys.stderr, flush=True)
        os._exit(1)
    except dist.DistNetworkError:  # torchrun is gone, and nobody else would end its processes
        os._exit(1)


@contextmanager
def _noting_failures() -> Iterator[None]:
    """Note an exception in the store, so that all processes end.

    Raises:
        ModelError: In place of an unexpected exception if it follows from the end of another process.
    """
    try:
        yield
    except BaseException as error:
        expected = isinstance(error, TskdError) or not isinstance(error, Exception)
        line = str(error) if isinstance(error, TskdError) else " ".join(f"{type(error).__name__}: {error}".split())
        cause = own = f"Process {rank()} of {count()} failed: {line}"
        if not expected and not _store.check([FAILED]):
            if silent := _silent_ranks():
                cause = f"Process {silent[0]} of {count()} was killed, perhaps because memory ran out."
            elif rank() > 0:
                log.exception("Process %d of %d failed.", rank(), count())
        first = _store.compare_set(FAILED, "", cause).decode()
        if not expected and first != own:
            raise ModelError(first) from error
        raise


def _silent_ranks() -> list[int]:
    """Ask all processes whether they are alive, and return those that do not answer."""
    answers = [f"{ALIVE}/{number}" for number in range(count())]
    _store.set(ALIVE, "")
    with suppress(dist.DistStoreError):
        _store.wait(answers, ALIVE_TIMEOUT)
    return [number for number, answer in enumerate(answers) if not _store.check([answer])]
