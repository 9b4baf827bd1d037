"""Measure tskd's speed and memory beside its peers' on the same data and machine.

Each measurement is a process of its own (``work.py``). The sides take turns, every second round backwards, so that a
machine that slows down does so for all. This process imports no torch: Linux would count its memory as its children's.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import child
import sweep

from tskd.report.table_writer import columns, to_markdown

PACKAGES = ("tskd", "torch", "transformers", "peft", "pytorch-lightning", "trl", "lm-eval")
OURS = "ours"
# The sides of each work, ours first, and the package that a peer needs.
SIDES = {
    "score": {OURS: "", "lm-eval, batch 8": "lm_eval", "lm-eval, batch 32": "lm_eval", "two models, all logits": ""},
    "train": {OURS: "", "TRL SFTTrainer": "trl", "transformers Trainer": ""},
    "generate": {OURS: "", "PEFT generate": "", "PEFT generate, contiguous head": ""},
}
MEDIANS = {  # columns, shown if they were measured
    "peak MB": "peak_mb",
    "loaded MB": "loaded_mb",
    "GPU peak MB": "cuda_peak_mb",
    "TFLOP/s": "tflops",
    "of the GPU's": "share_of_flops",
    "GB/s": "gbs",
    "of its memory's": "share_of_bandwidth",
}
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> Row:
    """Measure, write to ``--out``, print the tables and return all measurements."""
    args = _arguments(argv)
    results: Row = {"machine": machine(args.threads), "command": _command(args), "measurements": [], "checks": []}
    with tempfile.TemporaryDirectory() as folder:
        for model in args.model:
            name = Path(model).name
            job = {key: getattr(args, key) for key in ("data", "pairs", "dtype", "threads", "max_batch_tokens")}
            job |= {"model": model, "adapter": str(Path(folder, name)), "kind": "adapter", "side": "", "seed": 0}
            in_child(job)
            for kind, number in product((kind for kind in SIDES if kind in args.only), range(args.rounds)):
                chosen = [side for side in SIDES[kind] if side in (OURS, *(args.peer or SIDES[kind]))]
                sides = chosen[:: -1 if number % 2 else 1]
                found = {side: in_child({**job, "kind": kind, "side": side, "seed": number}) for side in sides}
                computed = {side: row.pop("computed", None) for side, row in found.items()}
                for side in chosen:
                    names = {"model": name, "kind": kind, "side": side, "round": number}
                    row = _with_rates(found[side], args.peak_tflops, args.peak_gbs)
                    results["measurements"].append(names | row)
                    if side != OURS and computed[OURS] and computed[side]:
                        results["checks"].append(names | compare(computed[OURS], computed[side]))
                _write(results, args.out)
    if "sweep" in args.only:
        results["sweep"] = [sweep.sweep(settings, args.threads) for settings in ("iterations=1", "iterations=3")]
        results["overhead"] = sweep.overhead("iterations=1", args.threads)
        _write(results, args.out)
    print(report(results))
    return results


def in_child(job: Mapping[str, Any]) -> Row:
    """Run ``job`` by ``work.py`` and return its row, or ``killed`` if it was."""
    print(*(job[key] for key in ("kind", "seed", "side")), file=sys.stderr)
    try:
        said = child.python(str(Path(__file__).with_name("work.py")), json.dumps(job), threads=job["threads"])
    except child.Killed:
        return {"killed": True}
    return json.loads(said.splitlines()[-1])  # type: ignore[no-any-return]


def compare(ours: Row, peer: Row) -> Row:
    """Compute how far a peer's numbers are from ours."""
    if "nll" in ours:
        rows = zip(ours["nll"], peer["nll"], strict=True)
        pairs = [(a, b) for of_ours, of_peer in rows for a, b in zip(of_ours, of_peer, strict=True)]
        return {
            "mean nll of a response, ours": fmean(a for a, _ in pairs),
            "mean difference": fmean(b - a for a, b in pairs),
            "largest difference": max(abs(b - a) for a, b in pairs),
        }
    if "texts" in ours:
        same = [a == b for a, b in zip(ours["texts"], peer["texts"], strict=True)]
        return {"equal texts": sum(same), "of": len(same)}
    sides = {"ours": ours, "peer": peer}
    return {f"{name}, {who}": said[name] for name in ("loss", "tokens") for who, said in sides.items()}


def report(results: Row) -> str:
    """Write the tables in Markdown."""
    measured = results["measurements"]
    parts = [speed_table(measured), notes(measured, results["checks"])] if measured else []
    if "sweep" in results:
        parts += [sweep.sweep_table(results["sweep"]), sweep.overhead_table(results["overhead"])]
    return "\n\n".join(parts)


def speed_table(rows: list[Row]) -> str:
    """Make a row for each model, work and side.

    Ratios are ours over the peer's in the same round: median (smallest–largest).
    """
    medians = {title: key for title, key in MEDIANS.items() if any(key in row for row in rows)}
    lines = []
    of: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        if "killed" not in row:
            of.setdefault((row["model"], row["kind"], row["side"]), {})[row["round"]] = row
    for name, side in of.items():
        ours = {} if name[2] == OURS else of.get((*name[:2], OURS), {})
        speed, cpu_speed, memory = (
            _median_and_range([ours[number][key] / side[number][key] for number in side if number in ours])
            for key in ("tokens_per_second", "tokens_per_cpu_second", "peak_mb")
        )
        tokens = _median_and_range([row["tokens_per_second"] for row in side.values()])
        cells = [_show(median(row[key] for row in side.values())) for key in medians.values()]
        lines.append([*name, tokens, speed, cpu_speed, *cells, memory])
    heads = ("model", "work", "side", "tokens/s", "ours / peer", "the same in CPU time", *medians, "peak, ours / peer")
    return to_markdown(columns(*heads), lines)


def notes(rows: list[Row], checks: list[Row]) -> str:
    """List what was killed, and each peer's numbers of the first round beside ours."""
    killed = [row for row in rows if "killed" in row]
    lines = [f"- {row['model']}, {row['kind']}, {row['side']}, round {row['round']}: killed" for row in killed]
    for check in checks:
        if check["round"] == 0:
            model, kind, side, _, *said = check.items()
            names = ", ".join(value for _, value in (model, kind, side))
            lines.append(f"- {names}: {', '.join(f'{key} {_show(value)}' for key, value in said)}")
    return "\n".join(lines)


def machine(threads: int) -> Row:
    """Describe the machine without its owner: date, processor, memory and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    processors = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": processors[0] if processors else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": threads,
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES},
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[], help="folder of a checkpoint; may be given again")
    parser.add_argument("--data", help="folder that holds bbh/*.json as published")
    parser.add_argument("--only", default="score,train,generate", type=lambda text: text.split(","))
    parser.add_argument("--peer", action="append", help="a side to compare with; may be given again; else all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: the checkpoint's"
    )
    parser.add_argument(
        "--max-batch-tokens", type=int, help="of our scoring and training; else the framework's default"
    )
    parser.add_argument("--peak-tflops", type=float, help="what the GPU can do in this dtype")
    parser.add_argument("--peak-gbs", type=float, help="bandwidth of the GPU's memory")
    parser.add_argument("--out", help="JSON with every measurement")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - {*SIDES, "sweep"}:
        parser.error(f"--only knows {', '.join([*SIDES, 'sweep'])}, not {', '.join(sorted(unknown))}")
    peers = {side for sides in SIDES.values() for side in sides} - {OURS}
    if unknown := set(args.peer or ()) - peers:
        parser.error(f"--peer knows {', '.join(sorted(peers))}, not {', '.join(sorted(unknown))}")
    if set(args.only) & set(SIDES) and not (args.model and args.data):
        parser.error("give --model and --data")
    needed = {
        package
        for kind in args.only
        for side, package in SIDES.get(kind, {}).items()
        if package and side in (args.peer or peers)
    }
    if missing := sorted(package for package in needed if importlib.util.find_spec(package) is None):
        parser.error(f"{' and '.join(missing)} cannot be imported; pip install 'tskd[bench]'")
    return args


def _with_rates(row: Row, peak_tflops: float | None, peak_gbs: float | None) -> Row:
    if "killed" in row:
        return row
    row["tokens_per_second"] = row["tokens"] / row["seconds"]
    row["tokens_per_cpu_second"] = row["tokens"] / row["cpu_seconds"]
    if "cuda_peak_mb" in row:  # written for a GPU, not yet run on one
        row["tflops"], row["gbs"] = (row[key] / row["seconds"] / size for key, size in (("flop", 1e12), ("bytes", 1e9)))
        row |= {"share_of_flops": row["tflops"] / peak_tflops} if peak_tflops else {}
        row |= {"share_of_bandwidth": row["gbs"] / peak_gbs} if peak_gbs else {}
    return row


def _write(results: Row, file: str | None) -> None:
    if file:
        Path(file).write_text(json.dumps(results, indent=1) + "\n")


def _command(args: argparse.Namespace) -> str:
    """Return the command, with the models' names for their folders."""
    given = [f"--model {Path(model).name}" for model in args.model] + ["--data DATA"] * bool(args.data)
    names = ("rounds", "threads", "pairs", "dtype", "max_batch_tokens")
    given += [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in names if getattr(args, name)]
    given += [f"--peer '{side}'" for side in args.peer or ()]
    return " ".join(["python experiments/bench/run.py", *given, f"--only {','.join(args.only)}"])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _median_and_range(values: list[float]) -> str:
    spread = f" ({_show(min(values))}–{_show(max(values))})" if len(values) > 1 else ""
    return _show(median(values)) + spread if values else ""


def _show(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
