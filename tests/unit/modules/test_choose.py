"""One token from logits and one uniform number."""

import math

import pytest
import torch

from tskd.errors import ConfigError
from tskd.models.generation import Sampling
from tskd.modules.generator import choose

PROBABILITIES = torch.tensor([0.05, 0.5, 0.15, 0.3])
LARGEST_BELOW_ONE = math.nextafter(1, 0)


def chosen(uniform, probabilities=PROBABILITIES, **settings):
    rows = torch.as_tensor(uniform)
    return choose(probabilities.log().expand(len(rows), -1), rows, Sampling(**{"temperature": 1.0, **settings}))


def chi_square(counts, expected):
    return ((counts - expected).square() / expected).sum().item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_models_probabilities_at_that_temperature(temperature):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    expected = 20_000 * (PROBABILITIES.log() / temperature).softmax(-1)
    counts = chosen(uniform, temperature=temperature).bincount(minlength=4)
    assert chi_square(counts, expected) < 11.3  # exceeded once in a hundred draws by chance, 3 degrees of freedom


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, {1}), (0.5, {1}), (0.51, {1, 3}), (0.79, {1, 3}), (0.9, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_likeliest_tokens_until_their_mass_reaches_it(top_p, kept):
    assert kept == set(chosen(torch.arange(1000) / 1000, top_p=top_p).tolist())


def test_what_top_p_keeps_is_sampled_in_proportion():
    counts = chosen((torch.arange(8000) + 0.5) / 8000, top_p=0.75).bincount(minlength=4)
    assert pytest.approx(counts.tolist(), abs=1) == [0, 5000, 0, 3000]


def test_greedy_takes_the_likeliest_whatever_the_number():
    assert {1} == set(chosen(torch.arange(10) / 10, temperature=0.0).tolist())


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [0.0, LARGEST_BELOW_ONE], ids=["smallest", "largest"])
def test_a_token_without_probability_is_never_chosen(uniform, dtype, top_p):
    # In fp32 the largest random numbers round to one.
    impossible_at_both_ends = torch.tensor([0.0, 0.5, 0.5, 0.0])
    assert chosen(torch.tensor([uniform], dtype=dtype), impossible_at_both_ends, top_p=top_p).item() in (1, 2)


def test_rows_are_chosen_each_by_its_own_number():
    logits = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 0.0]]) * 10
    assert choose(logits, torch.tensor([0.1, 0.9, 0.6]), Sampling(temperature=1.0)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, math.nan])
def test_a_mass_outside_its_range_is_refused(top_p):
    with pytest.raises(ConfigError, match="`top_p` is"):
        Sampling(top_p=top_p)
