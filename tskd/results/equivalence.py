"""Judge a tuned target against another model on the same held-out questions, in plain words."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from omegaconf import OmegaConf

from tskd.config import saved, trust
from tskd.errors import TskdError
from tskd.records import PRIVATE, Graded
from tskd.report.runs import FoundRun

BETTER, AS_GOOD, WORSE, TOO_THIN = "better", "as good", "worse", "too thin to say"
ALPHA = 0.05
MARGIN = 2.0  # points
MOST_QUESTIONS = 1_000_000  # that could still be asked for
SHOWN = 10


@dataclass(frozen=True)
class Judgement:
    """The tuned target against another model on the same questions, counted by which of the two is right.

    ``word`` is one of the four; equivalence is claimed only where the interval of the difference (Newcombe's, paired)
    lies above minus the margin, and a difference only where McNemar's exact test agrees with the interval.
    """

    only_target: int
    only_other: int
    both: int
    neither: int
    margin: float

    @classmethod
    def of(cls, target: Sequence[Graded], other: Sequence[Graded], margin: float) -> "Judgement":
        pairs = [(one.correct, two.correct) for one, two in zip(target, other, strict=True)]
        first, second, both, neither = map(pairs.count, ((True, False), (False, True), (True, True), (False, False)))
        return cls(first, second, both, neither, margin)

    @property
    def n(self) -> int:
        return self.only_target + self.only_other + self.both + self.neither

    @property
    def difference(self) -> float:
        """In points, as the interval and the margin."""
        return 100 * (self.only_target - self.only_other) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        from tskd.report.statistics import newcombe

        low, high = newcombe(self.only_target, self.only_other, self.both, self.neither)
        return 100 * low, 100 * high

    @property
    def p(self) -> float:
        from tskd.report.statistics import mcnemar

        return mcnemar(self.only_target, self.only_other)

    @property
    def word(self) -> str:
        low, high = self.interval
        differs = self.p <= ALPHA
        if differs and low > 0:
            return BETTER
        if low > -self.margin:
            return AS_GOOD
        return WORSE if differs and high < 0 else TOO_THIN

    def more_questions(self) -> int | None:
        """How many more would end the doubt if they fell out as these did; ``None`` where none in reach would."""

        counts = (self.only_target, self.only_other, self.both, self.neither)
        sizes = [int(self.n * 1.05**step) for step in range(400) if self.n * 1.05**step <= MOST_QUESTIONS]
        doubtful = [n for n in sizes if Judgement(*_scaled(counts, n / self.n), self.margin).word == TOO_THIN]
        enough = next((n for n in sizes if n > max(doubtful, default=0)), None)
        return None if enough is None else enough - self.n


def _scaled(counts: tuple[int, int, int, int], factor: float) -> tuple[int, int, int, int]:
    first, second, both, neither = (round(count * factor) for count in counts)
    return first, second, both, neither


def verdict(run: FoundRun, margin: float, texts: Callable[[], Mapping[str, str]]) -> str:
    """What may be said of a run, in lines. ``texts`` gives the questions by their ids, where they can be had."""
    if not run.graded:
        return (
            f"{run.folder} has no held-out questions, so nothing shows what the new model can do; give `task.held_out`."
        )
    by_split = {voice: _by_split(graded) for voice, graded in run.graded.items()}
    after, before, teacher = (by_split[voice] for voice in ("target after", "target before", "teacher"))
    lines, judged, flipped = [], [], {}
    for split, answers in after.items():
        name, other = ("teacher", teacher) if split == PRIVATE else ("untouched target", before)
        judgement = Judgement.of(answers, other[split], margin)
        judged.append(judgement.word)
        lines += ["", f"{split.upper()} QUESTIONS (n = {judgement.n}): target + adapter against the {name}"]
        lines += [f"  right: {_right(by_split, split)}", *_said(judgement, name)]
        if split == PRIVATE and all(answer.correct for answer in teacher[split]):
            lines.append("  The teacher is right on all, as it is by definition where questions come without answers.")
        flipped[f"{split}: the {name} is right, target + adapter is wrong"] = [
            (new, old) for new, old in zip(answers, other[split], strict=True) if old.correct and not new.correct
        ]
    lines += ["", "NEGATIVE FLIPS"]
    if any(flipped.values()):
        known = texts()
        for kind, pairs in flipped.items():
            lines.append(f"  {kind}: {len(pairs)}" + (f", of which the first {SHOWN}:" if len(pairs) > SHOWN else ""))
            lines += [f"    {_flip(known, new, old)}" for new, old in pairs[:SHOWN]]
    else:
        lines.append("  none")
    return "\n".join([f"{_answer(judged)} ({run.folder})", *lines, "", "COST", f"  {_cost(run)}"])


def _answer(judged: Sequence[str]) -> str:
    if WORSE in judged:
        return "MAY IT BE SHIPPED? No: it is measurably worse; see where."
    if TOO_THIN in judged:
        return "MAY IT BE SHIPPED? The evidence is too thin to say."
    if len(judged) == 1:
        return "MAY IT BE SHIPPED? Yes, by the private questions; no others tell what it may have forgotten."
    return "MAY IT BE SHIPPED? Yes, by these questions."


def _by_split(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    splits = dict.fromkeys(answer.split for answer in graded)
    return {split: [answer for answer in graded if answer.split == split] for split in splits}


def _right(by_split: Mapping[str, Mapping[str, Sequence[Graded]]], split: str) -> str:
    counts = {voice: sum(answer.correct for answer in splits[split]) for voice, splits in by_split.items()}
    n = len(by_split["teacher"][split])
    return ", ".join(f"{voice} {count} ({count / n:.1%})" for voice, count in counts.items())


def _said(judgement: Judgement, name: str) -> list[str]:
    low, high = judgement.interval
    measured = (
        f"  {judgement.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} (Newcombe, paired); McNemar's "
        f"exact p = {judgement.p:.3g}: {judgement.only_target} newly right, {judgement.only_other} newly wrong"
    )
    margin = f"{judgement.margin:g} points"
    said = {
        BETTER: f"Better than the {name}.",
        AS_GOOD: f"As good as the {name} within {margin}: the whole interval lies above -{judgement.margin:g}.",
        WORSE: f"Worse than the {name}, by {max(-high, 0):.1f} to {-low:.1f} points.",
        TOO_THIN: f"Too thin to say: a loss of more than {margin} is not excluded, and no loss is shown.",
    }[judgement.word]
    if judgement.word == TOO_THIN:
        more = judgement.more_questions()
        settle = "No number of questions in reach" if more is None else f"About {more:,} more questions"
        said += f" {settle} would settle it, if they fall out as these did."
    return [measured, f"  {said}"]


def _flip(texts: Mapping[str, str], new: Graded, old: Graded) -> str:
    question = shorten(texts.get(new.question, new.question), 100, placeholder="…")
    was, now = (shorten(each.response, 60, placeholder="…") for each in (old, new))
    return f"{question} · was {was!r}, is {now!r}"


def _cost(run: FoundRun) -> str:
    spent = {name: run.result.get(f"cost/{name}") or 0 for name in ("generated_tokens", "trained_tokens", "seconds")}
    said = (
        f"{spent['generated_tokens']:,} tokens generated, {spent['trained_tokens']:,} trained on, "
        f"{spent['seconds']:,.0f} s on {run.provenance.get('device', 'an unknown device')}"
    )
    saved = run.result.get("cost/reused_seconds") or 0
    return said + (f"; {saved:,.0f} s more, had the store not had parts of it" if saved >= 1 else "")


def questions(run: FoundRun) -> dict[str, str]:
    """The held-out questions' texts by their ids, from where the task has them; none where that is not to be had."""
    from tskd.config.build import make_task

    hydra = run.folder / ".hydra" / "hydra.yaml"
    started_in = str(OmegaConf.load(hydra).hydra.runtime.cwd) if hydra.is_file() else "."
    task: Any = OmegaConf.to_container(saved.of_run(run.folder, "task").task, resolve=True)
    try:
        trust.check({"task": task}, ())  # the folder may have come from elsewhere, and cannot allow itself anything
        with contextlib.chdir(started_in):
            asked = make_task(task).questions()
    except (TskdError, OSError) as error:
        print(f"The questions are named by their ids, for their texts cannot be had: {error}", file=sys.stderr)
        return {}
    return {question.prompt.id: question.prompt.text for question in asked}
