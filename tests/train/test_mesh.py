"""Meshes and ordered sharding rules."""

import jax
import jax.numpy as jnp
import pytest
from jax import P
from jax.sharding import AxisType

from train.mesh import following_shardings, make_mesh, tree_shardings

PARAMS = {
    "embed": jax.ShapeDtypeStruct((8, 4), jnp.float32),
    "layers": {"up": jax.ShapeDtypeStruct((2, 4, 16), jnp.float32)},
}


@pytest.mark.parametrize(("spec", "size"), [("data=-1", 8), ("data=2", 2), (" data = 8 ", 8)])
def test_a_mesh_takes_the_devices_it_is_told_to(spec: str, size: int):
    mesh = make_mesh(spec)
    assert dict(mesh.shape) == {"data": size}
    assert mesh.axis_types == (AxisType.Auto,)
    assert list(mesh.devices.flat) == jax.local_devices()[:size]


def test_the_first_matching_rule_wins():
    rules = [("embed", P("data")), (".*/up", P(None, None, "data")), (".*", P())]
    mesh = make_mesh("data=8")
    layout = tree_shardings(PARAMS | {"norm": PARAMS["embed"]}, rules, mesh)
    assert layout["embed"].spec == P("data")
    assert layout["layers"]["up"].spec == P(None, None, "data")
    assert layout["norm"].spec == P()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("embed", P())], r"no sharding rule covers layers/up; add a rule"),
        ([("embe", P()), ("up", P())], r"no sharding rule covers embed, layers/up"),
        ([("head", P()), (".*", P())], r"first match of no parameter: head"),
        ([(".*", P()), ("embed", P("data"))], r"first match of no parameter: embed"),
        ([("embed", P(None, "data")), (".*", P())], r"embed of shape \(8, 4\) cannot be laid out"),
        ([("embed", P(None, None, "data")), (".*", P())], r"embed of shape \(8, 4\) cannot be"),
    ],
)
def test_a_rule_that_does_not_fit_is_an_error_with_the_path(rules: list, message: str):
    with pytest.raises(ValueError, match=message):
        tree_shardings(PARAMS, rules, make_mesh("data=8"))


def test_optimizer_state_follows_its_parameter():
    mesh = make_mesh("data=8")
    rules = [("embed", P("data")), (".*/up", P(None, None, "data"))]
    layout = tree_shardings(PARAMS, rules, mesh)
    gate = {"layers": {"up": jax.ShapeDtypeStruct((2,), jnp.bool_)}}
    count = jax.ShapeDtypeStruct((), jnp.int32)
    following = following_shardings(
        {"count": count, "moment": PARAMS, "open": gate}, PARAMS, layout, mesh
    )
    assert following["moment"] == layout
    assert following["count"].spec == P()
    assert following["open"]["layers"]["up"].spec == P()
