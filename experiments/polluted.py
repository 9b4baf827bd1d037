"""Pollute pools of the embedded world with off-task questions to test filters.

    PYTHONPATH=experiments python -m tskd.run -m seed=0,1,2 selection=ppl_difference,random,all \
        allow=polluted expansion._target_=polluted.Polluted +expansion.off_task=0,0.25,0.5,0.75 \
        expansion.num_drafts=60 training.each_iteration=false training.replay.source=none tracking.mode=disabled \
        hydra.sweep.dir=outputs/polluted
    PYTHONPATH=experiments python -m tskd.run -m seed=0,1,2 selection=seed_shift threshold=auto …   # the rest as above
    python experiments/gather.py outputs/polluted atlas_polluted
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from tskd.records import Expansion, Prompt, Question
from tskd.stages.expand import FewShot
from tskd.tasks.atlas import Atlas


@dataclass(frozen=True)
class Polluted(FewShot):
    """Few-shot, with general questions of the world as the share ``off_task``.

    What few-shot itself strays into comes on top. Held-out questions are not taken, and each of the others once: there
    are 360, and where they are used up, fewer are added.
    """

    off_task: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __call__(self, pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
        expansion, world, rng = super().__call__(pool, seen, index), Atlas(), random.Random(f"{self.seed}/{index}")
        known = {p.fingerprint for p in (*seen, *expansion.prompts, *(q.prompt for q in world.questions()))}
        others = [q.prompt.text for q in self.strangers() if q.prompt.fingerprint not in known]
        count = round(len(expansion.prompts) * self.off_task / (1 - self.off_task))
        added = [Prompt(text, (), index, ("off task",)) for text in rng.sample(others, min(count, len(others)))]
        mixed = [*expansion.prompts, *added]
        rng.shuffle(mixed)
        return replace(expansion, prompts=tuple(mixed))

    def strangers(self) -> Sequence[Question]:
        """Return the questions to add, unless they are held out or seen."""
        return Atlas().general()
