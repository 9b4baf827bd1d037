"""What is wrong with a response that should not be learnt from, whatever a rule says of its scores.

Each fault is a name and a test. A run counts all of them, and drops those that its setting ``drop`` names.
"""

import math
from collections.abc import Callable, Mapping

from tskd.records import Scored

LONGEST, TIMES, LEAST = 64, 4, 32  # characters of a piece, how often it must come, and characters in all; ours


def is_not_finite(example: Scored) -> bool:
    """A perplexity that is no number, or infinite."""
    return not (math.isfinite(example.base_ppl) and math.isfinite(example.teacher_ppl))


def is_empty(example: Scored) -> bool:
    return not example.response.text.strip()


def is_repetitive(example: Scored) -> bool:
    """It ends in one piece, four times in a row or more: the loop that a model does not find out of."""
    text = example.response.text
    longest = min(LONGEST, len(text) // TIMES)
    return any(text.endswith(text[-size:] * max(TIMES, math.ceil(LEAST / size))) for size in range(1, longest + 1))


def is_unfinished(example: Scored) -> bool:
    """The length limit has cut it."""
    return not example.response.finished


FAULTS: Mapping[str, Callable[[Scored], bool]] = {
    "not_finite": is_not_finite,
    "empty": is_empty,
    "repetitive": is_repetitive,
    "unfinished": is_unfinished,
}
