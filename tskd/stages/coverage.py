"""How much of what expansion can find is known by now, and when that is enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from tskd.records import Iteration


def coverage(done: Sequence[Iteration]) -> float:
    """An estimate, between 0 and 1: of the drafts of prompts worth keeping, the share that repeats what is kept.

    It is told by the last iteration. Of its n drafts of prompts that are kept, f1 have a prompt that nothing else has
    brought: no seed, no iteration before, no other of these drafts. 1 - f1/n is Good's estimate (1953, Biometrika 40),
    with the iterations before as known: the drafts of one are drawn alike, from the same pool; those of two are not.
    Here it is 1 - (f1 + 1)/(n + 1), ours: as if one draft more had been new, so that a few cannot say that all is here.

    How many such prompts there are would be told by Chao1 (1984, Scand. J. Statist. 11), but only from below: where
    some are rare the share known seems larger than it is, and where they have no end it means nothing.

    Near-duplicates, where they are left out, do not count as repeats.
    """
    kept = {example.response.prompt.fingerprint for past in done for example in past.selection.kept}
    expansion = done[-1].expansion
    new = [prompt.fingerprint for prompt in expansion.prompts if prompt.fingerprint in kept]
    repeats = {prompt: count for prompt, count in expansion.repeats.items() if prompt in kept}
    draws, once = len(new) + sum(repeats.values()), sum(prompt not in repeats for prompt in new)
    return 1 - (once + 1) / (draws + 1)


@dataclass(frozen=True)
class Covered:
    """A stop rule: enough is known where the estimated ``coverage`` is reached; ours.

    ``max_iterations`` is for the loop, which ends there even so.
    """

    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.95
    max_iterations: PositiveInt = 10

    def __call__(self, done: Sequence[Iteration]) -> bool:
        return coverage(done) >= self.coverage
