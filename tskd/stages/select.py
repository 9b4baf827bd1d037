"""4. Select: keep the responses that carry what only the teacher knows.

A rule is any callable from scored responses to a ``Selection``; name a class of your own in a YAML of two lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tskd.records import Scored, Selection


@dataclass(frozen=True)
class PplDifference:
    """Keep where base perplexity minus teacher perplexity is at least ``threshold``: the paper's rule.

    A fixed difference, "e.g. 1.5", according to its reviews; that it is of perplexities and not of their logarithms
    is how we read them. A gap that is no number (infinite under both) is not kept.
    """

    threshold: float

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given."""
        kept = tuple(example for example in scored if example.gap >= self.threshold)
        dropped = tuple(example for example in scored if not example.gap >= self.threshold)
        return Selection(kept, dropped)


@dataclass(frozen=True)
class KeepAll:
    """Keep every response: no filter, which is what a filter has to be compared with."""

    def __call__(self, scored: Sequence[Scored]) -> Selection:
        """All kept, in the order given."""
        return Selection(tuple(scored), ())
