"""The forms of the argument `matrices`."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import by_path, describe, muon
from mimuon_jax.engine.axes import batch_shape, matrix_shape
from mimuon_jax.transforms.roles import roles
from tests import contract

PARAMS = {"embed": jnp.ones((9, 4)), "up": jnp.ones((3, 4, 8)), "bias": jnp.ones(8)}


@pytest.mark.parametrize(
    "matrices",
    [
        {"embed": None, "up": Numbers(1, 2), "bias": None},
        {"up": Numbers(-2, -1)},
        lambda params: jax.tree.map(lambda x: Numbers(1, 2) if x.ndim == 3 else None, params),
    ],
    ids=["tree", "partial tree", "callable"],
)
def test_forms_of_dimension_numbers(matrices):
    decided = {role.path: role.numbers for role in roles(PARAMS, matrices)}
    assert decided["embed"] is decided["bias"] is None
    assert matrix_shape((3, 4, 8), decided["up"]) == (4, 8)
    assert batch_shape((3, 4, 8), decided["up"]) == (3,)


def test_a_prefix_holds_for_everything_below_it():
    params = {"layers": {"q": jnp.ones((3, 4, 8)), "k": jnp.ones((3, 4, 8))}, "w": jnp.ones((2, 2))}
    decided = roles(params, {"layers": Numbers(1, 2), "w": None})
    assert [role.numbers for role in decided] == [Numbers(1, 2), Numbers(1, 2), None]


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        (Numbers(0, 3), "does not fit parameter 'up' of shape"),
        (Numbers(1, 1), "disjoint"),
        (Numbers((0, 1), (1, 2)), "disjoint"),
        (Numbers((), 1), "not empty"),
        ("matrix", "MuonDimensionNumbers"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        roles(PARAMS, {"embed": None, "up": numbers, "bias": None})


def test_an_entry_for_no_parameter_is_refused():
    with pytest.raises(ValueError, match="'upp', which is not a parameter") as error:
        roles(PARAMS, {"upp": Numbers(1, 2)})
    assert "embed" in str(error.value)


TAKE_MATRICES = {n for n in contract.FACTORIES if "matrices" in contract.parameters(n)}
TAKE_MATRICES -= {"mvr1", "mvr2", "split_fused"}  # without `clip` and `split` they do not read it
OTHER_STRUCTURES = [
    [Numbers(1, 2)],
    (None, Numbers(1, 2), None),
    {"up": {"kernel": Numbers(1, 2)}},
    lambda params: [None for _ in params],
]


@pytest.mark.parametrize("name", sorted(TAKE_MATRICES))
def test_a_tree_of_another_structure_is_one_clear_line(name):
    for matrices in OTHER_STRUCTURES:
        with pytest.raises(ValueError, match=r"^`matrices` has an entry for .*, which is n") as e:
            contract.make(name, matrices=matrices).init(PARAMS)
        assert "\n" not in str(e.value)
        with pytest.raises(ValueError, match=re.escape(str(e.value))):
            describe(PARAMS, matrices)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ("matrix", "`matrices` is 'matrix'; it is a tree or a function of the parameters"),
        (lambda params: None, "`matrices` is a function that returned None; return a tree"),
        (PARAMS, r"`matrices` holds an array of shape \(.*\) at 'bias'; use"),
        ({"up": True}, "`matrices` holds True at 'up'; use"),
    ],
)
def test_what_is_not_a_tree_of_entries_is_one_clear_line(matrices, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        roles(PARAMS, matrices)
    assert "\n" not in str(error.value)


def test_an_entry_for_value_is_for_value_alone():
    params = {"query": jnp.ones((4, 8)), "key": jnp.ones((4, 8)), "value": jnp.ones((4, 8))}
    given = {role.path: role.numbers for role in roles({"attn": params}, {"attn": {"value": None}})}
    assert given == {
        "attn/key": Numbers(0, 1),
        "attn/query": Numbers(0, 1),
        "attn/value": None,
    }


def test_numbers_for_a_module_are_for_its_kernel():
    shapes = {"kernel": (3, 4, 8), "bias": (3, 8), "scale": (8,)}
    params = {
        "up": {name: jnp.ones(shape) for name, shape in shapes.items()},
        "w": jnp.ones((2, 2)),
    }
    found = {role.path: role.numbers for role in roles(params, {"up": Numbers(1, 2)})}
    assert found == {
        "up/bias": None,
        "up/kernel": Numbers(1, 2),
        "up/scale": None,
        "w": Numbers(0, 1),
    }


def test_default_is_an_entry_of_its_own():
    params = {
        "layers": {"a": jnp.ones((3, 4, 8)), "embed": jnp.ones((9, 4))},
        "w": jnp.ones((2, 2)),
    }
    numbers = {"layers": {"a": Numbers(1, 2), "embed": "default"}, "w": "default"}
    found = [role.why for role in roles(params, numbers)]
    assert found == ["given as matrix", "names an embedding", "matrix"]


def test_patterns_of_paths_are_read_in_order():
    params = {
        "attention": {"key": jnp.ones((8, 2, 4)), "value": jnp.ones((8, 2, 4))},
        "w": jnp.ones((2, 2)),
    }
    matrices = by_path({"value": None, "attention/": Numbers(0, (1, 2))})
    assert [role.numbers for role in roles(params, matrices)] == [
        Numbers(0, (1, 2)),
        None,
        Numbers(0, 1),
    ]
    with pytest.raises(
        ValueError, match=r"'keys' does not match any parameter.*attention/key, attention/value"
    ):
        roles(params, by_path({"value": None, "keys": None, "attention": None}))
    with pytest.raises(ValueError, match="not a regular expression"):
        by_path({"(": None})


@pytest.mark.usefixtures("unchecked")
def test_a_pattern_needs_dimension_numbers():
    with pytest.raises(ValueError, match="MuonDimensionNumbers"):
        by_path({"key": "matrix"})


def test_numbers_of_the_whole_tree_are_right_for_a_part_of_it():
    numbers = {"embed": None, "up": Numbers(1, 2), "bias": None}
    side = masked(PARAMS, "embed", "bias")
    for matrices in (numbers, by_path({"embed": None, "up": Numbers(1, 2)})):
        roles(side, matrices)
        assert [role.numbers for role in roles(side, matrices)] == [Numbers(1, 2)]
    by_name = lambda params: {"up": Numbers(1, 2) if params["embed"].ndim < 3 else None}  # noqa: E731
    assert [role.numbers for role in roles(side, by_name)] == [Numbers(1, 2)]
    optimizers = {"fast": muon(1e-2, matrices=numbers), "slow": muon(1e-3, matrices=numbers)}
    tx = optax.multi_transform(optimizers, {"embed": "slow", "up": "fast", "bias": "slow"})
    with jax.numpy_dtype_promotion("standard"):  # for the Adam of optax
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_absent_parameters_may_have_an_entry():
    roles(PARAMS | {"b": None}, {"b": None, "up": Numbers(1, 2)})
    with pytest.raises(ValueError, match="'c'"):
        roles(PARAMS | {"b": None}, {"c": None})


def masked(tree: dict, *names: str) -> dict:
    """The tree with some of its leaves masked, as one side of `partition` sees it."""
    return tree | dict.fromkeys(names, optax.MaskedNode())


def test_axes_may_be_lists():
    assert roles(PARAMS, {"up": Numbers([0, 1], [2])})[2].numbers == Numbers([0, 1], [2])
