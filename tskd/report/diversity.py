"""Measure how different the prompts are that expansion wrote."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np
from sacrebleu.metrics import BLEU  # type: ignore[attr-defined]
from scipy import stats

from tskd.report.statistics import Values

SAMPLE = 32  # each is compared with all others, so the cost is its square
MOST_EMBEDDED = 500


class Embed(Protocol):
    """Makes unit vectors of texts (N, H); ``name`` is the model's."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> Values: ...


@dataclass(frozen=True)
class Spread:
    """How far apart ``n`` texts are, as ``model`` embeds them."""

    model: str
    n: int
    vendi: float
    distance: float


def self_bleu(texts: Sequence[str]) -> float | None:
    """Compute self-BLEU from 0 to 100: sacrebleu's BLEU of a text against the others.

    It is the mean over at most ``SAMPLE`` texts, drawn with a fixed seed. High means alike.

    Returns:
        ``None`` for fewer than two texts.

    Source:
        Zhu et al. (2018), arXiv 1802.01886.
    """
    drawn = random.Random(0).sample(list(texts), min(SAMPLE, len(texts)))
    if len(drawn) < 2:
        return None
    bleu = BLEU(effective_order=True)  # short prompts have no runs of four words
    return fmean(bleu.sentence_score(text, [*drawn[:i], *drawn[i + 1 :]]).score for i, text in enumerate(drawn))


def spreads(kinds: Sequence[Sequence[str]], embed: Embed) -> list[Spread | None]:
    """Measure how far apart the texts of each kind are.

    A Vendi score grows with the number of texts. So each kind gives as many, drawn with a fixed seed, as the smallest
    has, at most ``MOST_EMBEDDED``.

    Returns:
        The spread of each kind, in order; ``None`` for fewer than two texts.
    """
    n = min([MOST_EMBEDDED, *(len(texts) for texts in kinds if len(texts) > 1)])
    drawn = [random.Random(0).sample(list(texts), n) if len(texts) > 1 else [] for texts in kinds]
    distinct = list(dict.fromkeys(text for texts in drawn for text in texts))
    vectors = dict(zip(distinct, embed(distinct), strict=True)) if distinct else {}
    found = [np.array([vectors[text] for text in texts]) for texts in drawn]
    return [Spread(embed.name, n, vendi(own), mean_distance(own)) if len(own) else None for own in found]


def vendi(vectors: Values) -> float:
    """Compute the Vendi score of unit vectors (N, H), from 1, all alike, to N.

    It is the exponential of the entropy of the eigenvalues of their cosines over N. These are the squares of the
    vectors' singular values.

    Source:
        Friedman & Dieng (2023), TMLR, arXiv 2210.02410.
    """
    singular = np.linalg.svd(vectors, compute_uv=False)
    return math.exp(stats.entropy(singular**2))


def mean_distance(vectors: Values) -> float:
    """Compute the mean of one minus the cosine over all pairs of unit vectors (N, H)."""
    n, total = len(vectors), vectors.sum(axis=0)
    return float(1 - (total @ total - n) / (n * (n - 1)))
