"""The table of roles, and the warning if few parameters are matrices."""

import warnings

import jax.numpy as jnp
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import describe, muon
from mimuon_jax.transforms.describe import warn_if_few_are_matrices

PARAMS = {"embed": jnp.ones((9, 4)), "up": jnp.ones((3, 4, 8)), "bias": jnp.ones(8)}


def test_the_table_has_role_reason_and_rule():
    text = describe(PARAMS, {"up": Numbers(1, 2)})
    assert "embed      (9, 4)     auxiliary   names an embedding  name" in text
    assert "up         (3, 4, 8)  3 x [4, 8]  given as matrix     given" in text
    assert text.endswith("1 of 3 parameters are matrices, 96 of 140 numbers")


def test_the_table_shows_what_no_rule_decides():
    text = describe(PARAMS)
    assert "up         (3, 4, 8)  undecided  rank 3, axes unknown  undecided" in text
    assert text.endswith("0 of 3 parameters are matrices, 0 of 140 numbers, 1 undecided")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"b": jnp.ones(3)}, "0 of 1 parameters are matrices"),
        ({"embed": jnp.ones((9, 4))}, "'embed' of shape (9, 4): names an embedding"),
        ({"embed": jnp.ones((9, 4)), "w": jnp.ones((4, 8))}, "1 of 2 parameters are matrices"),
    ],
)
def test_few_matrices_are_one_warning(params, message):
    with pytest.warns(UserWarning, match="parameters are matrices") as caught:
        muon(1e-3).init(params)
    assert len(caught) == 1
    assert message in str(caught[0].message)


@pytest.mark.parametrize(
    ("params", "matrices"),
    [
        (
            {"embed": jnp.ones((9, 4)), "w": jnp.ones((4, 8))},
            {"embed": None},
        ),  # the caller's choice
        ({"embed": jnp.ones((8, 4)), "w": jnp.ones((4, 8))}, None),
        ({"b": jnp.ones(300), "w": jnp.ones((4, 8))}, None),  # vectors do not count
        ({}, None),
    ],
)
def test_enough_matrices_are_no_warning(params, matrices):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few_are_matrices(params, matrices)
