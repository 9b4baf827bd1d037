"""Read an offline Weights & Biases run file back: LevelDB's log format, holding protocol buffers."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2 as pb

BLOCK = 32768
HEADER = 7


def records(file: Path) -> Iterator[pb.Record]:
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    position, pieces = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        piece = data[position + HEADER : position + HEADER + length]
        if len(piece) < length:
            return  # the tail of a run that was cut off
        pieces = piece if kind in (1, 2) else pieces + piece
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = pb.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def read(file: Path) -> dict[str, Any]:
    """The run's identity, its history rows, summary, artifacts and exit code."""
    found: dict[str, Any] = {"history": [], "summary": {}, "artifacts": [], "exit_code": None, "metrics": {}}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run" and "id" not in found:
            run = record.run
            found |= {"id": run.run_id, "group": run.run_group, "name": run.display_name, "job_type": run.job_type}
            found["tags"] = list(run.tags)
            found["config"] = {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            found["history"].append(_items(record.history.item))
        elif kind == "summary":
            found["summary"] |= _items(record.summary.update)
        elif kind == "metric":
            found["metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            found["artifacts"].append(record.artifact.name)
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
    return found


def of_folder(folder: Path) -> list[dict[str, Any]]:
    """All runs below ``folder``, in the order of their folders, once their files are complete.

    The service that writes them may still be at it when ``finish`` has returned.
    """
    files = [file for file in sorted(folder.glob("**/offline-run-*/*.wandb")) if not file.parent.is_symlink()]
    deadline = time.monotonic() + 10
    while not all(_is_complete(file) for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [read(file) for file in files]


def _is_complete(file: Path) -> bool:
    try:
        return read(file)["exit_code"] is not None
    except (DecodeError, AssertionError):
        return False


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
