"""MBPP (Austin et al. 2021, arXiv 2108.07732): short Python functions, checked by three tests each. CC-BY-4.0.

File: ``mbpp/mbpp.jsonl``; on the hub: google-research-datasets/mbpp (full). Not the sanitized version, nor EvalPlus.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tskd.errors import ConfigError, TaskError
from tskd.records import Prompt, Question
from tskd.tasks import Harness
from tskd.tasks.published import Group, Published
from tskd.tasks.sandbox import isolated_tests
from tskd.tasks.sources import Row, Rows, hub_rows, json_lines, text_of

SEEDS, HELD_OUT, PRIVATE = range(1, 11), range(11, 511), range(601, 975)  # the task ids of its published splits
HUB_SPLITS = ("prompt", "test", "train")
REQUEST = "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n{}"


@dataclass(frozen=True)
class Program:
    """One task: what is asked, what passes, and how that is checked."""

    id: int
    task: Prompt
    question: Question
    tests: tuple[str, ...]
    setup: str


@dataclass(frozen=True)
class Mbpp(Published):
    """Private: the training split (task 601 to 974). Held out: the test split (11 to 510). Seeds: the prompt split.

    To be graded, a model's code must run, here and with the rights of this process but for what ``tskd.tasks.sandbox``
    takes away; so ``allow_code_execution`` must be set. ``unsandboxed`` runs it where no sandbox can be had.
    """

    name: ClassVar[str] = "mbpp"
    note: ClassVar[str] = (
        "The splits are published ones, of the original mbpp.jsonl and not EvalPlus: private is the training split, "
        "less what the test split asks for too; held out is the test split."
    )

    allow_code_execution: bool = False
    unsandboxed: bool = False

    def __post_init__(self) -> None:
        if not self.allow_code_execution:
            raise ConfigError(
                "MBPP runs model-written code on this machine to grade it; "
                "set `task.allow_code_execution=true` to allow that."
            )
        if not self.unsandboxed:
            isolated_tests.check_available()

    def is_correct(self, question: Question, response: str) -> bool:
        """Whether the code in ``response`` passes the question's tests."""
        tests, setup = self.checks_of(question)
        return passes(response, tests, setup, self.unsandboxed)

    def checks_of(self, question: Question) -> tuple[tuple[str, ...], str]:
        """The tests of one of this task's questions, and the code that they need to have run."""
        program = self._by_prompt[question.prompt.id]
        return program.tests, program.setup

    def harness(self) -> Harness:
        return self._harness("pass_at_1", runs_code=True)

    def _read(self) -> list[Group]:
        seeds, held_out, private = (
            [program for program in self._programs if program.id in ids] for ids in (SEEDS, HELD_OUT, PRIVATE)
        )
        # Three tasks are in two splits, with other tests: the code that one asks for is the other's answer.
        asked = {program.task.fingerprint for program in held_out}
        private = [program for program in private if program.task.fingerprint not in asked]
        return [Group("", *([program.question for program in side] for side in (private, held_out, seeds)))]

    @cached_property
    def _programs(self) -> list[Program]:
        return sorted((_program(*row) for row in self._rows()), key=lambda program: program.id)

    @cached_property
    def _by_prompt(self) -> dict[str, Program]:
        return {program.question.prompt.id: program for program in self._programs}

    def _rows(self) -> Rows:
        if self.root is None:
            return [row for split in HUB_SPLITS for row in hub_rows("google-research-datasets/mbpp", "full", split)]
        return json_lines(self.root, "mbpp/mbpp.jsonl")


def passes(response: str, tests: Sequence[str], setup: str = "", unsandboxed: bool = False) -> bool:
    """Whether the code in ``response`` runs and passes the tests, in the sandbox unless that is declined."""
    return isolated_tests.run_tests(code_in(response), tests, setup, unsandboxed=unsandboxed).passed


def code_in(response: str) -> str:
    """The first fenced block of a response, closed or not, or all of it where nothing is fenced."""
    fenced = re.search(r"^ *```[^\n]*\n(.*?)(?:^ *```|\Z)", response, re.DOTALL | re.MULTILINE)
    return fenced.group(1) if fenced else response


def _program(row: Row, where: str) -> Program:
    number, tests = row.get("task_id"), row.get("test_list")
    if not isinstance(number, int) or not isinstance(tests, list) or not tests:
        raise TaskError(f"{where}: a number `task_id` and a list of tests `test_list` are needed.")
    checks = tuple(text_of({"test_list": test}, "test_list", where) for test in tests)
    task = text_of(row, "text", where)
    question = Question(Prompt(REQUEST.format(task, "\n".join(checks))), text_of(row, "code", where))
    setup = text_of(row, "test_setup_code", where) if row.get("test_setup_code") else ""
    return Program(number, Prompt(task), question, checks, setup)
