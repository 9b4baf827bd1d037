"""Find what texts repeat of given text, word for word.

A text repeats another if they share a run of ``GRAMS`` words, ignoring case and punctuation: 13 as in the contamination
check of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C), and 8, which is ours and stricter. A shorter repeat
counts only if both texts are equal. Words in another form or order are not found.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from tskd.config import saved, trust
from tskd.config.build import make_task
from tskd.records import Prompt, Response
from tskd.storage import atomic_files
from tskd.tasks import WithPrivate
from tskd.tasks.files import Files

GRAMS = (8, 13)
# A word is what has no space or punctuation in it; in scripts that are written without spaces, a character.
WORD = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\\W_]+")
Record = TypeVar("Record")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2 ** 64


@dataclass(frozen=True)
class Repeats:
    """What some ``texts`` have in common with others: counts of texts, and the longest runs of words.

    ``equal``: how many are the same words as another. ``with_run``: how many share so many words in a row. ``runs``: of
    each that shares ``GRAMS[0]`` or more, its index and its longest shared run, the longest first.
    """

    texts: int
    equal: int
    with_run: Mapping[int, int]
    runs: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def figures(self) -> dict[str, int]:
        longest = len(self.runs[0][1]) if self.runs else 0
        shared = {f"with_{n}_words": count for n, count in self.with_run.items()}
        return {"texts": self.texts, "equal": self.equal, **shared, "longest": longest}

    def __str__(self) -> str:
        of = max(1, self.texts)
        shared = ", ".join(f"{count} ({count / of:.1%}) have {n} words in a row" for n, count in self.with_run.items())
        longest = self.figures["longest"] or f"below {GRAMS[0]}"
        return f"{self.texts} texts: {self.equal} ({self.equal / of:.1%}) equal, {shared}; the longest run is {longest}"


def words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def repeats(texts: Sequence[str], given: Sequence[str]) -> Repeats:
    """What ``texts`` repeat of ``given``. Time goes with the number of words in both."""
    said, known = [words(text) for text in texts], {tuple(words(text)) for text in given} - {()}
    numbers: dict[str, int] = {}
    ours, theirs = _Runs.of(said, numbers), _Runs.of(known, numbers)
    longest, begin = np.zeros(len(said), int), np.zeros(len(said), int)
    length, mine, yours = GRAMS[0], ours.places(GRAMS[0]), theirs.places(GRAMS[0])
    while len(mine) and len(yours):
        a, b = ours.hashes(mine, length), theirs.hashes(yours, length)
        mine, yours = mine[np.isin(a, b)], yours[np.isin(b, a)]
        longest[ours.text[mine]], begin[ours.text[mine]] = length, ours.word[mine]
        length += 1  # which a run can only be where it was as long as this
        mine, yours = mine[ours.left[mine] >= length], yours[theirs.left[yours] >= length]
    order = np.argsort(-longest, kind="stable")[: np.count_nonzero(longest)]
    runs = tuple((int(i), tuple(said[i][begin[i] : begin[i] + longest[i]])) for i in order)
    equal = sum(tuple(each) in known for each in said)
    return Repeats(len(said), equal, {n: int(np.count_nonzero(longest >= n)) for n in GRAMS}, runs)


@dataclass(frozen=True)
class _Runs:
    """All words of some texts, one after another: each (N,) with its ``text``, its place there, how many are ``left``.

    A run's hash is that of Rabin and Karp, modulo 2 ** 64: sums of each word's number times a power of ``BASE``.
    """

    text: NDArray[np.int64]
    word: NDArray[np.int64]
    left: NDArray[np.int64]
    sums: NDArray[np.uint64]  # (N + 1,) up to each word
    shift: NDArray[np.uint64]  # (N,) the inverse of the power of its place

    @classmethod
    def of(cls, texts: Collection[Sequence[str]], numbers: dict[str, int]) -> "_Runs":
        """``numbers`` gives each word its number, and goes on with words that are new."""
        counts = np.array([len(text) for text in texts], np.int64)
        ends = counts.cumsum()
        ids = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], np.uint64)
        text = np.repeat(np.arange(len(counts)), counts)
        left = ends[text] - np.arange(len(ids))
        powers, shift = (np.full(len(ids), pow(BASE, sign, 2**64), np.uint64).cumprod() for sign in (1, -1))
        sums = np.concatenate([np.zeros(1, np.uint64), (_mixed(ids) * powers).cumsum()])
        return cls(text, counts[text] - left, left, sums, shift)

    def places(self, length: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.left >= length)

    def hashes(self, places: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
        return (self.sums[places + length] - self.sums[places]) * self.shift[places]


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers that look random, for small ones in sums would meet by chance (splitmix64; Steele et al. 2014)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(BASE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def audit(folder: Path, private: Sequence[str] = (), allow: Sequence[str] = ()) -> dict[str, dict[str, Repeats]]:
    """What the prompts and responses of the run in ``folder`` repeat of its seeds and of ``private`` text.

    That is the task's private split, which the teacher was made from, and what is in the files named. Raises
    ``RunFolderError`` or ``TaskError``. Loads no weights.
    """
    settings: Any = OmegaConf.to_container(saved.of_run(folder, "task"), resolve=True)
    trust.check({"task": settings["task"]}, allow)
    task = make_task(settings["task"])
    given = {"seeds": [text for seed in task.seed_prompts() for text in _said(seed)]}
    questions = list(task.examples()) if isinstance(task, WithPrivate) else []
    questions += [question for name in private for question in Files("", name).questions()]
    if questions:
        given["private text"] = [text for question in questions for text in _said(question.prompt, question.answer)]
    written = {
        "prompts": [prompt.text for prompt in _records(Prompt, folder, "prompts.jsonl")],
        "responses": [response.text for response in _records(Response, folder, "responses.jsonl")],
    }
    return {kind: {of: repeats(texts, known) for of, known in given.items()} for kind, texts in written.items()}


def _records(kind: type[Record], folder: Path, name: str) -> list[Record]:
    files = sorted(folder.glob(f"iteration_*/{name}"))
    return [record for file in files for record in atomic_files.read_lines(kind, file)]


def _said(prompt: Prompt, answer: str | None = None) -> list[str]:
    return [*(turn.content for turn in prompt.context), prompt.text, *([answer] if answer else [])]
