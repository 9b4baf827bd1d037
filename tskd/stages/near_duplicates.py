"""ROUGE-L, exact, at about a microsecond a pair: what near-duplicates among prompts are told by."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge_l(a: str, b: str) -> float:
    """The F measure of ROUGE-L (Lin 2004): the longest common subsequence of words over the mean length; 0 to 1.

    As ``rouge_score`` computes it without stemming, which however leaves out all letters but a to z; here words of any
    script count, and differ in more than case.
    """
    one, other = words(a), words(b)
    return 2 * _common(_places(one), len(one), other) / (len(one) + len(other)) if one and other else 0.0


def words(text: str) -> tuple[str, ...]:
    """The runs of letters and digits, in lower case. Signs do not count: 3 + 4 and 3 * 4 are the same words."""
    return tuple(_WORD.findall(text.lower()))


class Similar:
    """The texts added so far; tells whether another is nearly one of them: ``rouge_l`` of ``least`` or more."""

    def __init__(self, least: float) -> None:
        self.least = least
        self._bits: dict[tuple[str, int], int] = {}  # of a word's first, second, … occurrence in a text
        self._by_length: dict[int, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)

    def add(self, text: str) -> None:
        found = words(text)
        for occurrence in _occurrences(found):
            self._bits.setdefault(occurrence, 1 << len(self._bits))
        self._by_length[len(found)].append((self._bag(found), found))

    def has(self, text: str) -> bool:
        found = words(text)
        bag, places = self._bag(found), _places(found)
        for length, others in self._by_length.items():
            # A common subsequence is no longer than the shorter text, and no longer than what the two bags share.
            mean = (len(found) + length) / 2
            if not mean or min(len(found), length) / mean < self.least:
                continue
            for other_bag, other in others:
                shared = (bag & other_bag).bit_count()
                if shared / mean >= self.least and _common(places, len(found), other) / mean >= self.least:
                    return True
        return False

    def _bag(self, found: Sequence[str]) -> int:
        """A bit for each occurrence of a word that a text added has, too."""
        return sum(self._bits.get(occurrence, 0) for occurrence in _occurrences(found))


def _occurrences(found: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each word with its number: the first of its kind in the text, the second, …"""
    counts: Counter[str] = Counter()
    for word in found:
        counts[word] += 1
        yield word, counts[word]


def _places(found: Sequence[str]) -> dict[str, int]:
    """For each word, the integer whose bits are set where it stands."""
    places: dict[str, int] = {}
    for place, word in enumerate(found):
        places[word] = places.get(word, 0) | 1 << place
    return places


def _common(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """The length of the longest common subsequence, with a row of its table in one integer.

    Crochemore, Iliopoulos, Pinzon & Reid 2001, in the form of Hyyrö 2004: a bit is 0 where the table grows by one.
    """
    full = row = (1 << length) - 1
    for word in other:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & full
    return length - row.bit_count()
