"""Meshes and ordered sharding rules."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding

from train.errors import BadInput
from train.mesh import (
    batch_sharding,
    check_batch_size,
    following_shardings,
    make_mesh,
    on_automatic_axes,
    tree_shardings,
)

PARAMS = {
    "embed": jax.ShapeDtypeStruct((8, 4), jnp.float32),
    "layers": {"up": jax.ShapeDtypeStruct((2, 4, 16), jnp.float32)},
}


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("data=-1", (8, 1, 1)),
        ("data=2", (2, 1, 1)),
        (" data = 8 ", (8, 1, 1)),
        ("fsdp=4", (1, 4, 1)),
        ("data=2,fsdp=2,tensor=2", (2, 2, 2)),
        ("tensor=2,data=-1", (4, 1, 2)),
    ],
)
def test_a_mesh_takes_the_devices_it_is_told_to(spec: str, sizes: tuple[int, ...]):
    mesh = make_mesh(spec)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == sizes
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert list(mesh.devices.flat) == jax.devices()[: math.prod(sizes)]
    assert batch_sharding(mesh).shard_shape((8, 3)) == (8 // sizes[0] // sizes[1], 3)


def test_explicit_axes_are_asked_for_and_taken_off_without_a_copy():
    mesh = make_mesh("fsdp=2", explicit=True)
    assert mesh.axis_types == (AxisType.Explicit,) * 3
    x = jax.device_put(jnp.arange(4.0), NamedSharding(mesh, P("fsdp")))
    y = on_automatic_axes({"x": x, "host": 1.0})
    assert y["host"] == 1.0
    assert y["x"].sharding == NamedSharding(make_mesh("fsdp=2"), P("fsdp"))
    pointers = [
        [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
        for array in (x, y["x"])
    ]
    assert pointers[0] == pointers[1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("model=2", "axis 'model' is unknown; the axes are data, fsdp, tensor"),
        ("data=2,data=2", "axis 'data' is given twice"),
        ("data=two", "'two' is not a whole number; write data=4"),
        ("fsdp=0", "a size must be at least 1, or -1"),
        ("data=-1,fsdp=-1", "only one axis can have the size -1"),
        ("fsdp=4,tensor=4", "needs 16 devices and there are 8"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(spec: str, message: str):
    with pytest.raises(BadInput, match=message):
        make_mesh(spec)


@dataclass(frozen=True)
class Device:
    """The attributes of a device that the mesh reads."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    num_cores: int = 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data=4", "uses 4 of 8 devices, but 2 processes must use all of theirs"),
        ("tensor=8", "the axis tensor spans several processes"),
        ("data=2,tensor=4", None),
    ],
)
def test_every_process_has_rows_of_its_own(spec: str, message: str | None):
    devices = [Device(i, i // 4) for i in range(8)]
    if message is None:
        assert make_mesh(spec, devices=devices).devices[1, 0, 3].process_index == 1
    else:
        with pytest.raises(BadInput, match=message):
            make_mesh(spec, devices=devices)


@pytest.mark.parametrize(
    ("size", "parts", "message"),
    [
        (12, 1, r"batch_size=12 is not divisible by the 8 devices.*; use 8 or 16"),
        (4, 1, r"; use 8, or a smaller mesh"),
        (24, 2, r"8 devices .* axes, times micro_batches=2; use 16 or 32"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(size: int, parts: int, message: str):
    with pytest.raises(BadInput, match=message):
        check_batch_size(size, make_mesh("data=4,fsdp=2"), parts)
    check_batch_size(16, make_mesh("data=4,fsdp=2"), 2)


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
        ([("head", P()), (".*", P())], r"never the first match: head"),
        ([(".*", P()), ("embed", P("data"))], r"never the first match: embed"),
        ([("embed", P(None, "data")), (".*", P())], r"embed of shape \(8, 4\) cannot be sharded"),
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
