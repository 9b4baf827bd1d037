"""What is read off next-token distributions (nll, KL, entropy, ULD, …), without ever holding a whole batch's logits.

A vocabulary of 262k makes ``[batch, time, vocabulary]`` the largest thing in memory, so the vocabulary head is applied
only at the positions that carry a loss, and to a slice of those at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.special import entr
from torch.utils.checkpoint import checkpoint

CHUNK = 256  # of 262k logits in fp32: 270 MB
Head = Callable[[Tensor], Tensor]


def token_nll(hidden: Tensor, labels: Tensor, head: Head, chunk: int = CHUNK) -> Tensor:
    """-log p(label) in nats, fp32, one for each row: hidden (N, H) and labels (N,) give (N,).

    Under autograd, the logits of more than one slice are computed again in the backward pass instead of being kept.
    """

    def nll(part: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(head(part).float(), label, reduction="none")

    return _in_slices(nll, chunk, hidden, labels)


def token_kl(
    hidden: Tensor, reference: Tensor, head: Head, chunk: int = CHUNK, *, reference_head: Head | None = None
) -> Tensor:
    """KL(reference ‖ model) over the vocabulary in nats: hidden and reference (N, H) give (N,).

    The reference has a head of its own or the model's, and gets no gradient.
    """

    def kl(part: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = (reference_head or head)(target).float().log_softmax(-1)
        return kl_div(head(part).float().log_softmax(-1), expected, reduction="none", log_target=True).sum(-1)

    return _in_slices(kl, chunk, hidden, reference.detach())


def token_entropy(hidden: Tensor, head: Head, chunk: int = CHUNK) -> Tensor:
    """Entropy over the vocabulary in nats: hidden (N, H) gives (N,)."""

    def entropy(part: Tensor) -> Tensor:
        return entr(head(part).float().softmax(-1)).sum(-1)

    return _in_slices(entropy, chunk, hidden)


def token_overlap(hidden: Tensor, expected: Tensor, head: Head, chunk: int = CHUNK) -> Tensor:
    """How alike two next-token distributions are, between 0 and 1: hidden (N, H) and expected (N, V) give (N,).

    Bhattacharyya's coefficient, Σ √(p q) over the vocabulary: 1 where they are one, 0 where they share no token.
    """

    def overlap(part: Tensor, others: Tensor) -> Tensor:
        return (head(part).float().softmax(-1) * others).sqrt().sum(-1)

    return _in_slices(overlap, chunk, hidden, expected)


def token_top(hidden: Tensor, head: Head, count: int, chunk: int = CHUNK) -> Tensor:
    """The ``count`` largest next-token probabilities, the largest first: hidden (N, H) gives (N, count)."""

    def top(part: Tensor) -> Tensor:
        return head(part).float().softmax(-1).topk(count).values

    return _in_slices(top, chunk, hidden)


def token_uld(hidden: Tensor, reference: Tensor, head: Head, chunk: int = CHUNK) -> Tensor:
    """The distance of two distributions over vocabularies of any kind: hidden (N, H) and reference (N, K) give (N,).

    Universal Logit Distillation (Boizard et al. 2024, arXiv 2402.12030): the sum of |p - q| over ranks, the largest
    probability of one compared with the largest of the other, and so on. ``reference`` are the K largest of the other
    model, as of ``token_top``; what either has beyond them counts as one more rank, which is a lower bound.
    """

    def distance(part: Tensor, theirs: Tensor) -> Tensor:
        ours = head(part).float().softmax(-1).topk(theirs.shape[1]).values
        return (ours - theirs).abs().sum(-1) + (ours.sum(-1) - theirs.sum(-1)).abs()

    return _in_slices(distance, chunk, hidden, reference)


def mean_by_row(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """The mean of ``values`` (N,) over the entries of each row: rows (N,) in 0..num_rows-1 give (num_rows,)."""
    totals = values.new_zeros(num_rows).index_add_(0, rows, values)
    counts = values.new_zeros(num_rows).index_add_(0, rows, torch.ones_like(values))
    return totals / counts


def _in_slices(function: Callable[..., Tensor], chunk: int, *tensors: Tensor) -> Tensor:
    parts = zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
    if torch.is_grad_enabled() and len(tensors[0]) > chunk:
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])
    return torch.cat([function(*part) for part in parts])
