"""What is measured in each iteration, by name: the keys of ``metrics.jsonl``, ``result.json`` and Weights & Biases."""

import math
from collections.abc import Sequence
from statistics import fmean, quantiles

from tskd.metrics.faults import FAULTS
from tskd.records import Iteration

Row = dict[str, float | int | None]

METRICS = {
    "prompts/new": "prompts that expansion wrote and nobody had written before",
    "prompts/duplicates": "drafts that repeat a prompt seen before, kept or dropped",
    "prompts/near_duplicates": "drafts that nearly repeat one, where `expansion.max_rouge_l` is set",
    "prompts/malformed": "drafts without one finished prompt in them",
    "prompts/held_out": "drafts that repeat a held-out question, and are dropped for it",
    "prompts/screened": "new prompts that a screen found not worth an answer",
    "prompts/coverage": "estimate: of the drafts worth keeping, the share that repeats what is kept already",
    "prompts/diversity": "distinct word pairs over all word pairs of the new prompts",
    "score/base_ppl_median": "perplexity of the responses under the base",
    "score/teacher_ppl_median": "perplexity of the responses under the teacher",
    "score/gap_p5": "base minus teacher perplexity, 5th percentile",
    "score/gap_p50": "the same, median",
    "score/gap_p95": "the same, 95th percentile",
    "score/not_finite": "responses with a perplexity that is no number, or infinite",
    "score/empty": "responses without a word",
    "score/repetitive": "responses that end in a loop",
    "score/unfinished": "responses that the length limit cut",
    "select/kept": "responses that selection kept",
    "select/threshold": "what the rule's criterion had to reach; `auto` is another in each run",
    "select/kept_fraction": "kept over scored",
    "select/precision": "kept that are private, over kept (where the truth is known)",
    "select/recall": "kept that are private, over private ones scored (where the truth is known)",
    "train/examples": "examples in the corpus: all kept so far",
    "train/not_finite": "examples that were left out, as their loss was no number",
    "train/loss": "mean response nll of the last epoch, nats per token",
    "cost/generated_tokens": "tokens generated, for prompts, responses and replay",
    "cost/scored_tokens": "response tokens scored, under base and teacher",
    "cost/trained_tokens": "response tokens trained on, all epochs",
    "cost/seconds": "wall-clock seconds of the iteration, evaluation included",
    "cost/reused_seconds": "what the results that came from the store had cost when they were computed",
    "eval/accuracy": "target + adapter on the private held-out questions",
    "eval/general_accuracy": "target + adapter on the general held-out questions",
    "eval/points_gained": "private accuracy after minus before, in points",
    "eval/recovered_gain": "(after - before) / (teacher - before), where the teacher leads by two standard errors",
    "eval/base_accuracy": "base on the private held-out questions, once per run",
    "eval/teacher_accuracy": "teacher on the same, once per run",
    "eval/target_accuracy": "untouched target on the same, once per run",
}


def iteration_metrics(iteration: Iteration, private: Sequence[bool | None]) -> Row:
    """The row of one iteration, without evaluation and time. ``private`` tells for each scored prompt, if it is known.

    Medians and quantiles are of finite values; a metric that cannot be had (nothing scored, truth unknown) is ``None``.
    """
    scored, kept, adapter = iteration.scored, iteration.selection.kept, iteration.adapter
    gaps = [example.gap for example in scored]
    row: Row = {
        "prompts/new": len(iteration.expansion.prompts),
        "prompts/duplicates": iteration.expansion.duplicates,
        "prompts/near_duplicates": iteration.expansion.near_duplicates,
        "prompts/malformed": iteration.expansion.malformed,
        "prompts/held_out": iteration.expansion.held_out,
        "prompts/screened": len(iteration.screened),
        "prompts/diversity": distinct([prompt.text for prompt in iteration.expansion.prompts], 2),
        "score/base_ppl_median": percentile([e.base_ppl for e in scored], 50),
        "score/teacher_ppl_median": percentile([e.teacher_ppl for e in scored], 50),
        "score/gap_p5": percentile(gaps, 5),
        "score/gap_p50": percentile(gaps, 50),
        "score/gap_p95": percentile(gaps, 95),
        **{f"score/{name}": sum(map(is_faulty, scored)) for name, is_faulty in FAULTS.items()},
        "select/kept": len(kept),
        "select/threshold": iteration.selection.threshold,
        "select/kept_fraction": len(kept) / len(scored) if scored else None,
        "train/examples": adapter.num_examples if adapter else None,
        "train/not_finite": adapter.not_finite if adapter else None,
        "train/loss": adapter.loss if adapter else None,
        "cost/generated_tokens": iteration.expansion.tokens
        + sum(e.response.tokens for e in scored)
        + (adapter.generated_tokens if adapter else 0),
        "cost/scored_tokens": 2 * sum(e.tokens for e in scored),
        "cost/trained_tokens": adapter.trained_tokens if adapter else 0,
    }
    known = [truth for truth in private if truth is not None]
    if known:
        truth = {e.response.prompt.id for e, is_private in zip(scored, private, strict=True) if is_private}
        hits = sum(e.response.prompt.id in truth for e in kept)
        row["select/precision"] = hits / len(kept) if kept else None
        row["select/recall"] = hits / len(truth) if truth else None
    return row


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The percentile of the finite values, interpolated; ``None`` where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return fmean(finite) if finite else None
    return quantiles(finite, n=100, method="inclusive")[percent - 1]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): distinct runs of n words over all of them."""
    words = [text.split() for text in texts]
    runs = [tuple(text[start : start + n]) for text in words for start in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else None
