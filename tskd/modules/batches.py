"""From token sequences to batches: sorted by length, bounded in tokens, padded on the side that the work needs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tskd.models.encoding import TokenSequence


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Padded sequences and where their targets are.

    ``input_ids`` and ``attention_mask`` are (B, T), padded on the right. The N targets of all rows lie one after
    another: ``rows`` and ``columns`` (N,) say where the hidden state before each is, ``labels`` (N,) which token it is.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "PaddedBatch":
        return PaddedBatch(*(getattr(self, name).to(device) for name in self.__slots__))


def by_length(lengths: Sequence[int], max_tokens: int, max_padding: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first.

    Rows times longest row stays within ``max_tokens``, and what is padded of it within ``max_padding``; a row that is
    longer is a batch of its own. The longest come first, so that memory is exhausted at once or never.
    """
    batches: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padding += longest - lengths[index]
        if not batches or (len(batches[-1]) + 1) * longest > max_tokens or padding > max_padding:
            batches.append([])
            longest, padding = lengths[index], 0
        batches[-1].append(index)
    return batches


def shuffled(count: int, batch_size: int, key: str) -> list[list[int]]:
    """Indices in batches of ``batch_size``, in an order that follows from ``key`` alone."""
    order = list(range(count))
    random.Random(key).shuffle(order)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def pad_right(sequences: Sequence[TokenSequence], pad: int) -> PaddedBatch:
    width = max(len(sequence.ids) for sequence in sequences)
    # Rows are masked by position: in many tokenizers the pad token is the end token, which must be learnt.
    ids = torch.tensor([[*sequence.ids, *[pad] * (width - len(sequence.ids))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence.ids) + [0] * (width - len(sequence.ids)) for sequence in sequences])
    targets = [(row, at) for row, s in enumerate(sequences) for at in range(s.first_target, len(s.ids))]
    rows, columns = torch.tensor(targets).reshape(-1, 2).unbind(1)
    return PaddedBatch(ids, mask, rows, columns - 1, ids[rows, columns])


def pad_left(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, T), padded on the left, so that all rows go on at the same column."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*[pad] * (width - len(row)), *row] for row in sequences])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences])
    return ids, mask
