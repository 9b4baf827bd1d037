"""How different the prompts are that expansion wrote."""

import random
from collections.abc import Sequence
from statistics import fmean

from sacrebleu.metrics import BLEU  # type: ignore[attr-defined]

SAMPLE = 32  # each is compared with all others, so the cost is its square


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): distinct runs of n words over all of them."""
    words = [text.split() for text in texts]
    runs = [tuple(text[start : start + n]) for text in words for start in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Self-BLEU (Zhu et al. 2018, arXiv 1802.01886) from 0 to 100: sacrebleu's BLEU of a text against all others.

    The mean over at most ``SAMPLE`` texts, drawn with a fixed seed. High means alike.
    """
    drawn = random.Random(0).sample(list(texts), min(SAMPLE, len(texts)))
    if len(drawn) < 2:
        return None
    bleu = BLEU(effective_order=True)  # short prompts have no runs of four words
    return fmean(bleu.sentence_score(text, [*drawn[:i], *drawn[i + 1 :]]).score for i, text in enumerate(drawn))
