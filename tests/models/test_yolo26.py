"""The detector: published counts, blocks against NumPy, norms, and the reference's numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import P
from jax.sharding import NamedSharding

from models import yolo26
from models.yolo26.blocks import C2PSA, BatchNorm, ConvNorm
from models.yolo26.params import flat_arrays, torch_name
from tests.models.yolo26_cases import (
    TINY,
    abstract,
    forward,
    named,
    random_model,
    relative_error,
    run,
    with_statistics,
)
from tests.models.yolo26_oracle import Network

# Specification, table of section 1: trained parameters, and BN statistics with 20 classes.
COUNTS = {
    ("n", 80): 2_572_280,
    ("s", 80): 10_009_784,
    ("m", 80): 21_896_248,
    ("l", 80): 26_299_704,
    ("x", 80): 58_993_368,
    ("n", 20): 2_511_600,
    ("s", 20): 9_963_344,
    ("m", 20): 21_803_728,
    ("l", 20): 26_207_184,
    ("x", 20): 58_854_768,
    ("n", 3): 2_504_970,
    ("s", 3): 9_950_186,
    ("m", 3): 21_777_514,
    ("l", 3): 26_180_970,
    ("x", 3): 58_815_498,
}
ALL = {"n": (126, 14, 18_992), "s": (126, 14, 37_984), "m": (136, 14, 56_192)} | {
    "l": (190, 15, 70_528),
    "x": (190, 15, 105_792),
}  # kernels, depthwise ones among them, scalars of running statistics with 20 classes
TENSORS = {"n": 366, "s": 366, "m": 396, "l": 558, "x": 558}
FUSED = {"n": 2_378_736, "s": 9_472_920, "m": 20_364_872, "l": 24_761_160, "x": 55_656_648}
# The coarsest channels of two images would have 12 values to normalize with: rounding grew to 4e-5.
IMAGES = np.random.default_rng(1).random((4, 64, 96, 3), np.float32)


def leaves(model, kind=nnx.Param):
    return jax.tree.leaves(nnx.state(model, kind))


@pytest.mark.parametrize("scale", ["n", *(pytest.param(s, marks=pytest.mark.slow) for s in "smlx")])
def test_a_scale_has_the_published_counts(scale):
    model = abstract(yolo26.scaled(scale, 20))
    params = leaves(model)
    kernels = [x for x in params if x.ndim == 4]
    assert sum(x.size for x in params) == COUNTS[scale, 20]
    assert len(params) == TENSORS[scale]
    depthwise = sum(x.shape[2] == 1 for x in kernels)
    statistics = sum(x.size for x in leaves(model, nnx.BatchStat))
    assert (len(kernels), depthwise, statistics) == ALL[scale]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "classes"), COUNTS)
def test_a_scale_has_the_published_number_of_parameters(scale, classes):
    assert yolo26.parameter_count(yolo26.scaled(scale, classes)) == COUNTS[scale, classes]


@pytest.mark.parametrize("scale", ["n", pytest.param("x", marks=pytest.mark.slow)])
def test_a_folded_model_has_the_published_number_of_parameters(scale):
    model = abstract(yolo26.scaled(scale, 20), heads=("one_to_one",), folded=True)
    assert sum(x.size for x in leaves(model)) == FUSED[scale]
    assert not leaves(model, nnx.BatchStat)


@pytest.mark.slow
def test_a_training_pass_is_that_of_the_oracle_layer_by_layer():
    model = random_model(TINY)
    maps, outputs, after = run(model, IMAGES, training=True)
    network = Network(yolo26.to_torch(model), repeats=1, nested=True, training=True)
    expected_maps, expected = network.outputs(IMAGES.astype(np.float64).transpose(0, 3, 1, 2))
    # In float32 through all layers. Observed: 3.4e-5 with JAX 0.10.2, 5.3e-5 with 0.12.
    for ours, theirs in zip(maps, expected_maps, strict=True):
        assert relative_error(ours.transpose(0, 3, 1, 2), theirs) < 1e-4
    for name, array in named(outputs).items():
        assert relative_error(array, expected[name]) < 1e-4
    moved = yolo26.to_torch(with_statistics(model, after))
    assert len(network.after) == len(leaves(model, nnx.BatchStat))
    for name, array in network.after.items():
        assert relative_error(moved[name], array) < 1e-5


@pytest.mark.slow
def test_a_chain_of_blocks_in_inference_is_that_of_the_oracle():
    conv = functools.partial(
        ConvNorm,
        kernel_init=nnx.initializers.normal(0.1),
        rngs=nnx.Rngs(0),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    block = C2PSA(256, 2, conv)  # two heads
    x = np.random.default_rng(2).normal(size=(1, 2, 3, 256)).astype(np.float32)
    arrays = {f"b.{torch_name(path)}": np.asarray(x) for path, x in flat_arrays(block).items()}
    arrays = {k: v.transpose(3, 2, 0, 1) if v.ndim == 4 else v for k, v in arrays.items()}
    expected = Network(arrays, repeats=2, nested=False, training=False).c2psa(
        "b", x.astype(np.float64).transpose(0, 3, 1, 2)
    )
    assert relative_error(block(jnp.asarray(x), False).transpose(0, 3, 1, 2), expected) < 1e-5


def test_statistics_are_those_of_the_whole_batch_on_any_number_of_devices():
    x = np.random.default_rng(0).normal(3, 2, (8, 2, 2, 4)).astype(np.float32)

    @jax.jit
    def normalize(x):
        norm = BatchNorm(4, param_dtype=jnp.float32)
        return norm(x, True), norm.mean[...], norm.var[...]

    alone = normalize(x)
    values = x.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(alone[1], 0.03 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(alone[2], 0.97 + 0.03 * values.var(0, ddof=1), rtol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = normalize(jax.device_put(x, NamedSharding(mesh, P("data"))))
    assert not spread[0].sharding.is_fully_replicated
    for a, b in zip(alone, spread, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_new_model_has_the_initial_values_of_the_specification():
    model = jax.jit(lambda: nnx.split(yolo26.YOLO26(TINY, rngs=nnx.Rngs(0))))()
    arrays = {path: np.asarray(x) for path, x in flat_arrays(nnx.merge(*model)).items()}
    for path, x in arrays.items():
        if x.ndim == 4:
            reach = np.abs(x).max() * np.sqrt(np.prod(x.shape[:3]))
            assert 0.9 * (x.size > 64) < reach <= 1
        elif path.endswith(("scale", "var")):
            assert (x == 1).all()
        elif "output" not in path:
            assert (x == 0).all()
        np.testing.assert_array_equal(x, arrays[path.replace("one_to_one", "one_to_many")])
    kernels = [x.ravel() for path, x in arrays.items() if x.ndim == 4 and "one_to_one" not in path]
    assert len({float(x[0]) for x in kernels}) == len(kernels)
    for level, bias in enumerate((-8.253, -6.867, -5.481)):  # ln(5 / 3 / (640 / s)^2)
        np.testing.assert_allclose(
            arrays[f"one_to_one/classes/{level}/output/bias"], bias, atol=1e-3
        )
        np.testing.assert_array_equal(arrays[f"one_to_one/boxes/{level}/output/bias"], 2)


@pytest.mark.slow
def test_the_one_to_one_head_gives_the_levels_no_gradient():
    model = random_model(TINY)
    levels = [jnp.ones((1, 2, 2, 8)), jnp.ones((1, 1, 2, 16)), jnp.ones((1, 1, 1, 16))]

    def total(levels, head):
        maps = dict(zip((16, 19, 22), levels, strict=True))
        outputs = model.from_maps(maps)
        return sum(x.sum() for x in getattr(outputs, head))

    gradients = jax.jit(jax.grad(total), static_argnums=1)
    assert all((g == 0).all() for g in gradients(levels, "one_to_one"))
    assert all((g != 0).any() for g in gradients(levels, "one_to_many"))


@pytest.mark.slow
def test_bfloat16_gives_float32_outputs_and_statistics():
    model = abstract(TINY, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    graph, params, model_state = nnx.split(model, nnx.Param, ...)
    maps, outputs, after = jax.eval_shape(
        functools.partial(forward, graph, training=True),
        nnx.to_pure_dict(params),
        nnx.to_pure_dict(model_state),
        jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32),
    )
    assert {x.dtype for x in maps} == {x.dtype for x in leaves(model)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves((outputs, after))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.uint8), r"images are uint8\[1, 64, 64, 3\]; use floats"),
        (np.zeros((64, 64, 3), np.float32), r"images are float32\[64, 64, 3\]; use floats"),
        (np.zeros((1, 64, 48, 3), np.float32), "64 x 48 pixels.*multiples of 32"),
        (np.zeros((1, 0, 64, 3), np.float32), "0 x 64 pixels.*multiples of 32"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        random_model(TINY)(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 is not a size"),
        ({"max_channels": 64.0}, "max_channels=64.0 is not a size"),
        ({"width": 0.0}, "width=0.0 is out of range"),
        ({"depth": float("nan")}, "depth=nan is out of range"),
        ({"depth": "deep"}, "depth='deep' is not a number"),
        ({"nested": 1}, "nested=1 is not a choice"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_an_unknown_scale_or_head_is_refused():
    with pytest.raises(ValueError, match="scale='z' is unknown; use 'n', 's'"):
        yolo26.scaled("z", 20)
    with pytest.raises(ValueError, match=r"heads=\('o2o',\) must be one or both"):
        yolo26.YOLO26(TINY, heads=("o2o",), rngs=nnx.Rngs(0))
