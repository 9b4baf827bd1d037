"""Batches: nothing lost, nothing added, nothing moved."""

import pytest
import torch

from tskd.models.encoding import TokenSequence
from tskd.modules.batches import by_length, pad_left, pad_right, shuffled

LENGTHS = [3, 50, 7, 7, 20, 1, 9, 7]


@pytest.mark.parametrize("lengths", [[], [5], LENGTHS, [0, 0]])
@pytest.mark.parametrize("max_tokens", [1, 7, 24, 1000])
@pytest.mark.parametrize("max_padding", [0, 5, 1000])
def test_each_index_comes_once_in_batches_within_the_bounds(lengths, max_tokens, max_padding):
    batches = by_length(lengths, max_tokens, max_padding)
    assert list(range(len(lengths))) == sorted(i for batch in batches for i in batch)
    for batch in ([lengths[i] for i in batch] for batch in batches):
        assert len(batch) == 1 or len(batch) * max(batch) <= max_tokens
        assert len(batch) * max(batch) - sum(batch) <= max_padding


def test_a_batch_takes_what_both_bounds_allow():
    assert by_length([9, 9, 8, 4, 4, 1], 18, 5) == [[0, 1], [2, 3], [4, 5]]
    assert by_length([9, 9, 8, 4, 4, 1], 1000, 1) == [[0, 1, 2], [3, 4], [5]]


def test_the_longest_come_first():
    in_order = [LENGTHS[i] for batch in by_length(LENGTHS, 24, 1000) for i in batch]
    assert sorted(LENGTHS, reverse=True) == in_order


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (6, 3), (7, 3)])
def test_a_shuffle_holds_each_index_once_in_full_batches_but_the_last(count, size):
    batches = shuffled(count, size, "key")
    assert list(range(count)) == sorted(i for batch in batches for i in batch)
    assert all(len(batch) == size for batch in batches[:-1])


def test_a_shuffle_follows_from_its_key():
    assert shuffled(30, 4, "a") == shuffled(30, 4, "a") != shuffled(30, 4, "b")


PAD = 0
SEQUENCES = [TokenSequence((5, 6, PAD), 1), TokenSequence((7, PAD), 1), TokenSequence((8, 9, 3, 4), 3)]


def test_right_padding_keeps_every_token_in_its_place():
    batch = pad_right(SEQUENCES, PAD)
    assert batch.input_ids.tolist() == [[5, 6, 0, 0], [7, 0, 0, 0], [8, 9, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_each_target_is_predicted_from_the_token_before_it():
    batch = pad_right(SEQUENCES, PAD)
    assert list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (2, 2)]
    assert batch.labels.tolist() == [
        6,
        PAD,
        PAD,
        4,
    ]  # an end token that is the pad token too is a target like any other
    assert torch.equal(batch.labels, batch.input_ids[batch.rows, batch.columns + 1])


def test_left_padding_lets_all_rows_go_on_at_the_same_column():
    ids, mask = pad_left([(5, 6, 7), (8,)], PAD)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
