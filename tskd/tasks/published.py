"""What the public benchmarks have in common: groups of questions, each divided into a private and a held-out side.

Prompts that are equal up to case and white space (``Prompt.fingerprint``) are never on both sides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveInt

from tskd.errors import ConfigError, TaskError
from tskd.records import Prompt, Question
from tskd.tasks import Harness

ALL = "all"


@dataclass(frozen=True)
class Group:
    """One part of a benchmark (a subset, or all of it), divided. ``seeds`` is empty where the private side has them."""

    name: str
    private: Sequence[Question]
    held_out: Sequence[Question]
    seeds: Sequence[Question] = ()


@dataclass(frozen=True)
class Published:
    """A benchmark, from the folder ``root`` with its published files, or from the hub where that is ``None``.

    ``num_seeds`` (5 in Trans-LoRA), ``num_private`` and ``limit`` count in each group: so many seeds, the first so many
    private examples, the first so many held-out questions. ``num_fewshot`` solved examples, the first private ones, are
    shown by the harness before each question.
    """

    drops_held_out: ClassVar[bool] = True
    note: ClassVar[str]
    name: ClassVar[str]

    root: str | None = None
    num_seeds: PositiveInt = 5
    num_private: PositiveInt | None = None
    limit: PositiveInt | None = None
    num_fewshot: NonNegativeInt = 0

    @property
    def label(self) -> str:
        return self.name

    def examples(self) -> list[Question]:
        """The private split with its answers. Raises ``TaskError`` where a file is missing or not as published."""
        return [question for group in self._groups for question in group.private[: self.num_private]]

    def questions(self) -> list[Question]:
        """The held-out split. It does not depend on which other groups are chosen."""
        return [question for group in self._groups for question in group.held_out[: self.limit]]

    def seed_prompts(self) -> list[Prompt]:
        """The first ``num_seeds`` different prompts of each group. Raises ``TaskError`` where it has fewer."""
        return different(prompt for group in self._groups for prompt in self._seeds_of(group))

    def is_private(self, prompt: Prompt) -> None:
        return None

    def _read(self) -> list[Group]:
        raise NotImplementedError

    def _harness(self, metric: str, rule: str = "none", *, runs_code: bool = False) -> Harness:
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        metadata = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        return Harness(f"tskd_{self.name}", metric, rule, metadata, self.num_fewshot, runs_code)

    @cached_property
    def _groups(self) -> list[Group]:
        groups = self._read()
        for group in groups:
            if not group.held_out:
                raise TaskError(
                    f"{self._title(group)} has no held-out questions; take the files as they are published."
                )
        # A question can be in two groups; where one of them holds it out, it is private in none.
        held_out = {question.prompt.fingerprint for group in groups for question in group.held_out}
        return [
            replace(group, private=[q for q in group.private if q.prompt.fingerprint not in held_out])
            for group in groups
        ]

    def _seeds_of(self, group: Group) -> list[Prompt]:
        pool = group.seeds or group.private[: self.num_private]
        prompts = different(question.prompt for question in pool)
        if self.num_seeds > len(prompts):
            few = "" if self.num_private is None or group.seeds else f" (`task.num_private` is {self.num_private})"
            raise TaskError(
                f"`task.num_seeds` is {self.num_seeds}, and the private split of {self._title(group)} "
                f"has {len(prompts)} different prompts{few}; ask for fewer."
            )
        return prompts[: self.num_seeds]

    def _title(self, group: Group) -> str:
        return f"{self.name} {group.name}".strip()


@dataclass(frozen=True)
class PublishedSubsets(Published):
    """A benchmark of many ``subset``s: one, several, ``all``, or the name of a category."""

    subset: str | tuple[str, ...] = ALL
    categories: ClassVar[Mapping[str, Sequence[str]]]

    def __post_init__(self) -> None:
        known = (*self.categories, *self.categories[ALL])
        for name in self._asked:
            if name not in known:
                nearest = get_close_matches(name, known, n=3, cutoff=0.0)
                raise ConfigError(
                    f"`task.subset` is {name!r}, and {self.name} has no such one; nearest are {', '.join(nearest)}."
                )
        if not self._asked:
            raise ConfigError("`task.subset` is empty; name one, several, or `all`.")
        if self.num_fewshot and len(self.subsets) > 1:
            raise ConfigError(
                f"`task.num_fewshot` is {self.num_fewshot} with {len(self.subsets)} subsets, and the harness would "
                f"show examples of one before questions of another; choose one `task.subset`, or 0."
            )

    @property
    def subsets(self) -> list[str]:
        """The chosen ones, in the order of the benchmark whatever the order of asking."""
        chosen = {member for name in self._asked for member in self.categories.get(name, (name,))}
        return [name for name in self.categories[ALL] if name in chosen]

    @property
    def label(self) -> str:
        first, *more = self._asked
        return f"{self.name}-{first}" + (f"+{len(more)}" if more else "")

    @property
    def _asked(self) -> tuple[str, ...]:
        return (self.subset,) if isinstance(self.subset, str) else self.subset


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """The questions in the order of their prompts' SHA-256, cut after half of the different prompts."""
    ordered = sorted(questions, key=lambda q: (q.prompt.fingerprint, q.prompt.text, q.answer))
    fingerprints = list(dict.fromkeys(question.prompt.fingerprint for question in ordered))
    first = set(fingerprints[: len(fingerprints) // 2])
    return (
        [question for question in ordered if question.prompt.fingerprint in first],
        [question for question in ordered if question.prompt.fingerprint not in first],
    )


def different(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts without those that repeat an earlier one up to case and white space."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.fingerprint, prompt)
    return list(first.values())
