"""What the YAML files here ask: the questions of the classes in ``tskd.tasks``, as documents.

Each function takes a class's settings, from the harness's ``--metadata``, and gives the private split as ``train``
(which few-shot examples are taken from, the first ones first) and the held-out questions as ``test``.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tskd.errors import ConfigError
from tskd.records import Question
from tskd.tasks.bbh import Bbh
from tskd.tasks.gsm8k import Gsm8k
from tskd.tasks.mbpp import Mbpp, passes
from tskd.tasks.mmlu import LETTERS, Mmlu
from tskd.tasks.published import Published

Settings = Mapping[str, Any]
Document = dict[str, Any]
Made = TypeVar("Made", bound=Published)


def bbh(**metadata: Any) -> dict[str, Any]:
    return _documents(_task(Bbh, metadata))


def gsm8k(**metadata: Any) -> dict[str, Any]:
    return _documents(_task(Gsm8k, metadata))


def mmlu(target_delimiter: str = "", **metadata: Any) -> dict[str, Any]:
    """``target_delimiter`` stands before each letter; the harness puts a space there by itself, but in no chat."""
    choices = [target_delimiter + letter for letter in LETTERS]
    return _documents(
        _task(Mmlu, metadata), lambda question: {"choices": choices, "target": LETTERS.index(str(question.answer))}
    )


def mbpp(**metadata: Any) -> dict[str, Any]:
    # The harness asks for leave to run code itself (--confirm_run_unsafe_code), before it asks any question.
    task = _task(Mbpp, {**metadata, "allow_code_execution": True})

    def checks(question: Question) -> Document:
        tests, setup = task.checks_of(question)
        return {"tests": tests, "setup": setup, "unsandboxed": task.unsandboxed}

    return _documents(task, checks)


def mbpp_results(document: Document, responses: list[str]) -> dict[str, float]:
    """Whether the code of the one response passes the document's tests."""
    passed = passes(responses[0], document["tests"], document["setup"], document["unsandboxed"])
    return {"pass_at_1": float(passed)}


def _task(kind: type[Made], metadata: Settings) -> Made:
    known = {field.name for field in fields(kind)}
    for name in metadata.keys() - known:  # the harness adds names of its own, such as those of --model_args
        if meant := get_close_matches(name, known, n=1, cutoff=0.8):
            raise ConfigError(f"`{name}` in --metadata is unknown; `{meant[0]}` is near it.")
    try:
        return TypeAdapter(kind).validate_python({name: metadata[name] for name in known & metadata.keys()})
    except ValidationError as error:
        said = "; ".join(
            f"`{problem['loc'][0]}` is {problem['input']!r}: {problem['msg']}" for problem in error.errors()
        )
        raise ConfigError(f"--metadata: {said}.") from None


def _documents(task: Published, more: Callable[[Question], Document] = lambda _: {}) -> dict[str, Any]:
    datasets = importlib.import_module("datasets")
    splits = {"train": task.examples(), "test": task.questions()}
    return {
        name: datasets.Dataset.from_list(
            [{"prompt": q.prompt.text, "answer": q.answer, "group": q.group, **more(q)} for q in questions]
        )
        for name, questions in splits.items()
    }
