"""The prior that tests share, which none of them changes."""

import pytest

from stage2_prior.prior import Prior
from tests.stage2_prior.random_prior import make_prior


@pytest.fixture(scope="module")
def prior() -> Prior:
    return make_prior()
