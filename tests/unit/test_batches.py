"""Batches: nothing lost, nothing added, nothing moved."""

import pytest
import torch

from tskd.modules.batches import TokenSequence, by_length, cheapest_parts, pad_left, pad_right, shuffled

LENGTHS = [3, 50, 7, 7, 20, 1, 9, 7]


@pytest.mark.parametrize("lengths", [[], [5], LENGTHS, [0, 0]])
@pytest.mark.parametrize("max_tokens", [1, 7, 24, 1000])
def test_each_index_comes_once_in_batches_within_the_bound(lengths, max_tokens):
    batches = by_length(lengths, max_tokens)
    assert list(range(len(lengths))) == sorted(i for batch in batches for i in batch)
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= max_tokens for b in batches)


def test_the_longest_come_first():
    in_order = [LENGTHS[i] for batch in by_length(LENGTHS, 24) for i in batch]
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


@pytest.mark.parametrize("fixed_cost", [0, 3, 100])
@pytest.mark.parametrize("lengths", [[3, 1, 2], [9, 9, 2, 2, 2, 1], [5], [1, 7, 1, 7, 4, 6]])
def test_parts_cost_least_of_all_ways_to_cut_the_sorted_rows(lengths, fixed_cost):
    longest_first = sorted(lengths, reverse=True)

    def cost(parts):
        return sum(len(part) * max(part) + fixed_cost for part in parts)

    def ways(rows):
        return [[rows]] + [[rows[:n], *rest] for n in range(1, len(rows)) for rest in ways(rows[n:])]

    parts = cheapest_parts(lengths, 10**6, fixed_cost)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    assert min(map(cost, ways(longest_first))) == cost([[lengths[i] for i in part] for part in parts])


def test_parts_stay_within_the_bound_but_for_a_row_of_its_own():
    assert cheapest_parts([9, 3, 3, 3, 1], 6, 100) == [[0], [1, 2], [3, 4]]
