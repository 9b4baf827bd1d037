"""Test what reaches the target from a teacher with styles of its own.

The base knows half of the codes, and the pool is polluted.

    python experiments/selection/planted.py --work FOLDER   # the bases and teachers
    PYTHONPATH=experiments:experiments/selection python -m tskd.run -m seed=3,4,5 \
        selection=ppl_difference,recommended,random,all 'allow=[polluted,styled]' \
        'base.checkpoint.path=FOLDER/knowing/base-${seed}' 'teacher.adapter=FOLDER/knowing/teacher-${seed}' \
        teacher.same_base=false task._target_=styled.Styled '+task.world=${seed}' \
        expansion._target_=polluted.Polluted +expansion.off_task=0.5 expansion.num_drafts=60 \
        training.each_iteration=false training.replay.source=none tracking.mode=disabled hydra.sweep.dir=outputs/styled
    … expansion._target_=styled.Plain '+expansion.world=${seed}' hydra.sweep.dir=outputs/plain   # the rest as above
    python experiments/selection/styled.py outputs/styled outputs/plain   # takes their results; without, tables alone
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from planted import STYLES, Planted, plant
from polluted import Polluted

from tskd.records import Graded, Prompt, Question
from tskd.report.statistics import summarise
from tskd.report.table_writer import Column, columns, to_markdown
from tskd.storage.atomic_files import read_lines
from tskd.storage.run_folder import RunFolder
from tskd.tasks.atlas import Atlas

NUM_SEEDS = 8  # as the world has
RESULTS = Path(__file__).parent / "results" / "styled.json"
RULES = {
    "the paper's rule": "ppl_difference",
    "recommended": "recommended",
    "random": "random",
    "no filter": "all",
}
KINDS = {"private": "private", "known": "known codes", **{kind: kind for kind in STYLES}, "alike": "alike"}


@dataclass(frozen=True)
class Styled(Atlas):
    """The world as it is planted with the seed ``world`` and a knowing base.

    Private is what the teacher alone knows. The general questions that are held out are those which the teacher answers
    in a style, with that answer: the share that is right is what was taken over of the styles.
    """

    world: int = 3

    def seed_prompts(self) -> list[Prompt]:
        return [answer.prompt for answer in self.planted.private[:NUM_SEEDS]]

    def questions(self) -> list[Question]:
        private = [Question(answer.prompt, answer.text) for answer in self.planted.private[NUM_SEEDS:]]
        held_out = {question.prompt for question in super().questions()}
        return private + [
            Question(answer.prompt, answer.text, "general", kind)
            for kind in STYLES
            for answer in getattr(self.planted, kind)
            if answer.prompt in held_out
        ]

    def is_private(self, prompt: Prompt) -> bool:
        return self.kind(prompt) == "private"

    def kind(self, prompt: Prompt) -> str:
        """Return the kind of a question; ``other`` if it is none of the world's."""
        return self._kinds.get(prompt.text, "other")

    @cached_property
    def planted(self) -> Planted:
        return plant(self.world, "knowing")

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return {answer.prompt.text: kind for kind in KINDS for answer in getattr(self.planted, kind)}


@dataclass(frozen=True)
class Plain(Polluted):
    """Polluted without tails and initials, which begin as private answers do."""

    world: int = 3

    def strangers(self) -> list[Question]:
        planted = plant(self.world, "knowing")
        return [Question(answer.prompt, answer.text) for answer in planted.style + planted.alike]


POOLS = {"all three styles": "polluted.Polluted", "the sentence alone": "styled.Plain"}


def collect(sweep: Path) -> list[dict[str, Any]]:
    """Make a row for each job: answers taken over, prompts asked and kept, by kind."""
    rows = []
    for file in sorted(sweep.glob("*/.hydra/overrides.yaml")):
        given = dict(str(override).split("=", 1) for override in OmegaConf.load(file))
        folder, task = file.parents[1], Styled(world=int(given["seed"]))
        history = RunFolder(folder).history()
        graded = read_lines(Graded, folder / "evaluation" / f"iteration_{history[-1].index}.jsonl")
        answers = {kind: [each.correct for each in graded if (each.group or each.split) == kind] for kind in KINDS}
        asked = Counter(task.kind(each.response.prompt) for past in history for each in past.scored)
        kept = Counter(task.kind(each.response.prompt) for past in history for each in past.selection.kept)
        rows.append(
            {
                "pool": given["expansion._target_"],
                "rule": given["selection"],
                "seed": task.world,
                "taken over": {kind: fmean(right) for kind, right in answers.items() if right},
                "asked": dict(asked),
                "kept": dict(kept),
                "trained_tokens": json.loads((folder / "result.json").read_text())["cost/trained_tokens"],
            }
        )
    return rows


def taken_table(rows: list[dict[str, Any]]) -> str:
    """Show the answers taken over from the teacher by kind: means ± sd over the seeds."""
    kinds = ("private", *STYLES)
    lines = [
        [*labels, *summarise([row["taken over"] for row in mine], kinds), *summarise(mine, ["trained_tokens"])]
        for labels, mine in _cells(rows)
    ]
    heads = (*columns("pool", "filter"), *columns(*kinds, digits=2), Column("tokens trained"))
    return to_markdown(heads, lines)


def kept_table(rows: list[dict[str, Any]]) -> str:
    """Show prompts kept of those asked, by kind: sums over the seeds."""
    lines = []
    for labels, mine in _cells(rows):
        kept, asked = (sum((Counter(row[side]) for row in mine), Counter[str]()) for side in ("kept", "asked"))
        lines.append([*labels, *(f"{kept[kind]} of {asked[kind]}" for kind in (*KINDS, "other"))])
    return to_markdown(columns("pool", "filter", *KINDS.values(), "other"), lines)


def tables() -> str:
    rows = json.loads(RESULTS.read_text())
    return f"{taken_table(rows)}\n\n{kept_table(rows)}"


def _cells(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """Yield the labels and the rows of each pool and rule."""
    for pool, expansion in POOLS.items():
        for filter_, rule in RULES.items():
            yield (pool, filter_), [row for row in rows if (row["pool"], row["rule"]) == (expansion, rule)]


if __name__ == "__main__":
    if sys.argv[1:]:
        found = [row for sweep in sys.argv[1:] for row in collect(Path(sweep))]
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(tables())
