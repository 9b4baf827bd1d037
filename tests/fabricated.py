"""Made-up benchmark files in the published formats, small enough to know by heart: for tests where the real are not.

Every subset has an odd number of questions, one of them twice, the second time in other letters and spaces.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
TWINS = ("clinical_knowledge", "college_medicine")  # subjects that share a question, as the real ones do


def write_all(root: Path, subsets: Iterable[str] = ("navigate", "snarks"), subjects: Iterable[str] = TWINS) -> str:
    """All four benchmarks in ``root``, which comes back as the text that a task takes."""
    for subset in subsets:
        write_bbh(root, subset)
    for subject in subjects:
        write_mmlu(root, subject)
    write_gsm8k(root)
    write_mbpp(root)
    return str(root)


def bbh(subset: str) -> list[dict[str, Any]]:
    rows = [{"input": f"Does {subset} {i} lead home?\nOptions:\n- Yes\n- No", "target": "YN"[i % 2]} for i in range(24)]
    return [*rows, {"input": rows[3]["input"].upper().replace(" ", "  "), "target": rows[3]["target"]}]


def write_bbh(root: Path, subset: str, rows: Iterable[Mapping[str, Any]] | None = None) -> None:
    _write(root / "bbh" / f"{subset}.json", json.dumps({"canary": "x", "examples": list(rows or bbh(subset))}))


def gsm8k(split: str, number: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "question": f"A {split} box holds {i} pears and {i * 1000} plums. How many fruits?",
            "answer": f"It holds {i}+{i * 1000}=<<{i}+{i * 1000}={i * 1001}>>{i * 1001} fruits.\n#### {i * 1001:,}",
        }
        for i in range(1, number + 1)
    ]


def write_gsm8k(root: Path) -> None:
    train, test = gsm8k("train"), gsm8k("test")
    test.append({**train[1], "question": train[1]["question"].upper()})
    for split, rows in {"train": train, "test": test}.items():
        write_lines(root / "gsm8k" / f"{split}.jsonl", rows)


def program(number: int) -> dict[str, Any]:
    return {
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n    return x + {number}",
        "task_id": number,
        "test_setup_code": "",
        "test_list": [f"assert add({x}) == {x + number}" for x in (0, 1, 5)],
        "challenge_test_list": [],
    }


def write_mbpp(root: Path) -> None:
    rows = [program(number) for number in (*range(1, 11), *range(11, 21), *range(511, 514), *range(601, 613))]
    rows[-1] = {**rows[-1], "text": rows[12]["text"].upper()}  # asked for in the test split too, with other tests
    rows[-2] = {**rows[-2], "test_setup_code": "base = 1\r\n"}
    write_lines(root / "mbpp" / "mbpp.jsonl", rows)


def mmlu(subject: str, split: str) -> list[list[Any]]:
    number = {"dev": 5, "test": 10}[split]
    rows = [[f'Which, in "{subject}",\nis {split} {i}?', "one", "two", "three", "four", i % 4] for i in range(number)]
    if split == "test":
        rows.append([rows[2][0].upper(), *rows[2][1:]])
    if subject in TWINS and split == ("dev" if subject == TWINS[0] else "test"):
        rows.append(["What is shared?", "this", "that", "these", "those", 2])
    return rows


def write_mmlu(root: Path, subject: str) -> None:
    for split in ("dev", "test"):
        path = root / "mmlu" / split / f"{subject}_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *mmlu(subject, split)])


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
