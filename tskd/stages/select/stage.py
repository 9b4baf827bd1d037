"""The stage, and what a rule is: any callable from scored responses to a ``Selection``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from tskd.errors import ModelError
from tskd.metrics import faults
from tskd.records import Scored, Selection

Rule = Callable[[Sequence[Scored]], Selection]
Level = float | Literal["auto"]
AUTO: Literal["auto"] = "auto"
MIN_SEEDS = 3  # fewer say too little of what is like them


@runtime_checkable
class ByTheSeeds(Protocol):
    """A rule that the seeds can tell what to keep."""

    def calibrated(self, of_seeds: Sequence[Scored]) -> Rule:
        """The rule with each ``auto`` replaced by what ``of_seeds`` say."""


@dataclass(frozen=True)
class Select:
    """The stage: what ``rule`` keeps, once the seeds have told it what it asks of them.

    The rule is not shown responses with a fault that ``drop`` names (``tskd.metrics.faults``). Where it does not name
    ``not_finite``, a perplexity that is no number ends the run.
    """

    rule: Rule
    drop: tuple[str, ...] = ("not_finite",)

    def __call__(self, scored: Sequence[Scored], of_seeds: Sequence[Scored]) -> Selection:
        """Kept and dropped, each in the order given. Raises ``ModelError`` as ``drop`` says."""
        if "not_finite" not in self.drop:
            _check_finite(scored)
        is_faulty = [any(faults.FAULTS[name](example) for name in self.drop) for example in scored]
        rule = self.rule.calibrated(of_seeds) if isinstance(self.rule, ByTheSeeds) else self.rule
        shown = [example for example, faulty in zip(scored, is_faulty, strict=True) if not faulty]
        selection = rule(shown)
        if len(shown) < len(scored):
            kept = {id(example) for example in selection.kept}
            selection = split(scored, [id(example) in kept for example in scored])
        threshold = getattr(rule, "threshold", None)
        return selection if threshold is None else replace(selection, threshold=threshold)


def _check_finite(scored: Sequence[Scored]) -> None:
    for line, example in enumerate(scored, 1):
        if faults.is_not_finite(example):
            raise ModelError(
                f"Response {line} of {len(scored)} (its line in `scored.jsonl`) has perplexity {example.base_ppl:g} "
                f"under the base and {example.teacher_ppl:g} under the teacher; use a `dtype` with a wider range, or "
                f"let such responses be dropped and counted: `drop=[not_finite]`."
            )


def split(scored: Sequence[Scored], keep: Sequence[bool]) -> Selection:
    """Kept and dropped, each in the order given."""
    pairs = list(zip(scored, keep, strict=True))
    return Selection(tuple(e for e, kept in pairs if kept), tuple(e for e, kept in pairs if not kept))


def shown(threshold: float | str) -> str:
    """A threshold as it is written: 1.5, 1, auto."""
    return threshold if isinstance(threshold, str) else f"{threshold:g}"
