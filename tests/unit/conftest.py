"""The benchmarks, each on made-up files and, where they lie beside the checkout, on the real ones."""

import pytest

from tests import fabricated
from tests.benchmarks import KINDS, REAL, SMALL, needs_real_data


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return fabricated.write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(params=["made up", pytest.param("real", marks=needs_real_data)])
def root(request, made_up):
    return made_up if request.param == "made up" else str(REAL)


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def task(kind, root):
    return KINDS[kind](root, **SMALL[kind])
