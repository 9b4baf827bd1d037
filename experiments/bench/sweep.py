"""Measure what the store saves in a sweep, and a run's time without its models.

``python sweep.py OVERRIDE…`` runs ``tskd.run`` in this process and prints where its time went.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import yaml

from tskd.report.table_writer import Column, columns, to_markdown

UNITS = ("seconds", "cpu_seconds")
THRESHOLDS = ("0", "0.5", "1", "2", "4")


def sweep(settings: str, threads: int) -> dict[str, Any]:
    """Time a sweep with a fresh store, and a run for each threshold without one.

    Returns:
        The settings, the seconds by the clock and of CPU of both, and how many results agree.
    """

    def seconds(*arguments: str) -> tuple[float, float]:
        start, start_of_cpu = time.perf_counter(), _cpu_of_children()
        child.python("-m", "tskd.run", *arguments, settings, threads=threads, folder=root)
        return time.perf_counter() - start, _cpu_of_children() - start_of_cpu

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        swept_in = seconds("-m", f"threshold={','.join(THRESHOLDS)}", "store=store", "hydra.sweep.dir=sweep")
        runs = [seconds(f"threshold={each}", "store=off", f"hydra.run.dir=single/{each}") for each in THRESHOLDS]
        ran_in = [sum(column) for column in zip(*runs, strict=True)]
        swept, single = (
            {_threshold(file.parent): _numbers(file) for file in root.glob(f"{name}/*/result.json")}
            for name in ("sweep", "single")
        )
    same = sum(swept.get(threshold) == numbers for threshold, numbers in single.items())
    of = {"sweep": swept_in, "single": ran_in}
    seconds_of = {f"{name}_{unit}": each for name, both in of.items() for unit, each in zip(UNITS, both, strict=True)}
    return {"settings": settings, **seconds_of, "same_results": same}


def overhead(settings: str, threads: int) -> dict[str, Any]:
    """Return the seconds of one run: whole, forward, backward, optimiser, rest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(__file__).resolve()), settings, "store=off", "hydra.run.dir=run"]
        said = child.python(*command, threads=threads, folder=Path(folder))
    return {"settings": settings, **json.loads(said.splitlines()[-1])}


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """Compare a sweep with a run for each threshold, in Markdown."""
    names = ("sweep, s", "single runs, s", "single / sweep", "the same in CPU time", "same results")
    lines = []
    for row in rows:
        seconds = (f"{row[f'{way}_seconds']:.1f}" for way in ("sweep", "single"))
        ratios = (row[f"single_{unit}"] / row[f"sweep_{unit}"] for unit in UNITS)
        lines.append([row["settings"], *seconds, *ratios, f"{row['same_results']} of {len(THRESHOLDS)}"])
    return to_markdown(columns(f"thresholds {', '.join(THRESHOLDS)}", *names, digits=2), lines)


def overhead_table(row: dict[str, Any]) -> str:
    """Show where the time of one run goes, in Markdown."""
    parts = ("whole", "forward", "backward", "optimizer", "rest")
    heads = (Column("one run"), *columns(*(f"{part}, s" for part in parts), digits=1), Column("rest / whole", 3))
    return to_markdown(heads, [[row["settings"], *(row[part] for part in parts), row["rest"] / row["whole"]]])


def where_time_goes(work: Callable[[], None]) -> dict[str, float]:
    """Return the seconds of ``work`` in modules, backward passes, optimiser and rest.

    Only the outermost call counts, so that nothing counts twice: modules that a backward pass calls are backward.
    """
    import torch

    spent = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    inside = False

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside = False
                spent[part] += time.perf_counter() - start

        return call

    torch.nn.Module.__call__ = timed("forward", torch.nn.Module.__call__)  # type: ignore[method-assign]
    torch.autograd.backward = timed("backward", torch.autograd.backward)
    torch.optim.AdamW.step = timed("optimizer", torch.optim.AdamW.step)  # type: ignore[method-assign]
    start = time.perf_counter()
    work()
    whole = time.perf_counter() - start
    return {"whole": whole, **spent, "rest": whole - sum(spent.values())}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _threshold(folder: Path) -> float:
    return float(yaml.safe_load((folder / "config.yaml").read_text())["threshold"])


def _numbers(result: Path) -> dict[str, Any]:
    """Return a run's result without its times."""
    return {key: value for key, value in json.loads(result.read_text()).items() if not key.endswith("seconds")}


if __name__ == "__main__":
    from tskd.run import main

    print("\n" + json.dumps(where_time_goes(main)))
