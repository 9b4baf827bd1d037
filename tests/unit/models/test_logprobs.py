"""The formulas, against torch's own."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from tskd.models.logprobs import mean_by_row, token_kl, token_nll

HIDDEN, OTHER = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
HEAD = torch.nn.Linear(5, 11, bias=False)
LABELS = torch.tensor([0, 3, 10, 2, 2, 7, 5])


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_nll_and_its_gradient_are_those_of_cross_entropy_whatever_the_chunk(chunk):
    mine, theirs = (HIDDEN.clone().requires_grad_() for _ in range(2))
    nll = token_nll(mine, LABELS, HEAD, chunk)
    expected = cross_entropy(HEAD(theirs), LABELS, reduction="none")
    torch.testing.assert_close(nll, expected)
    nll.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_kl_is_torchs_and_zero_between_equals():
    expected = kl_div(HEAD(HIDDEN).log_softmax(-1), HEAD(OTHER).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(token_kl(HIDDEN, OTHER, HEAD, chunk=2), expected)
    torch.testing.assert_close(token_kl(HIDDEN, HIDDEN, HEAD), torch.zeros(7), atol=1e-6, rtol=0)


def test_a_row_has_the_mean_of_its_own_values():
    means = mean_by_row(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([1, 0, 1]), 2)
    assert means.tolist() == [3.0, 3.0]
