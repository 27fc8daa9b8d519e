"""Qwen3 configurations, parameter counts, matrix axes, and the model as an nnx citizen."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

import models.qwen3 as qwen3
from tests.models.qwen3_cases import (
    SQUARE,
    abstract,
    build,
    forward,
    next_token_loss,
    random_params,
    relative_error,
)

pytestmark = pytest.mark.standard_promotion

SMALL = qwen3.Qwen3Config(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    tie_word_embeddings=False,
)
ANOTHER_VALUE = {
    "vocab_size": 12,
    "hidden_size": 10,
    "intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rope_theta": 100.0,
    "rope_scaling": qwen3.RotaryScaling(rope_type="linear", factor=4.0),
    "attention_bias": True,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6]])


def shapes(config):
    """Shapes of the parameters by path."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(abstract(config), nnx.Param))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


# The published checkpoints' own totals (a tied head counted once).
@pytest.mark.parametrize(
    ("size", "count"),
    [
        (qwen3.qwen3_0_6b, 596_049_920),
        (qwen3.qwen3_1_7b, 1_720_574_976),
        (qwen3.qwen3_4b, 4_022_468_096),
        (qwen3.qwen3_8b, 8_190_735_360),
        (qwen3.tiny, 623_680),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(size, count):
    assert qwen3.parameter_count(size()) == count
    assert f"{count:,}" in size.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SMALL)])
def test_every_field_changes_parameters_or_logits(field):
    base = dataclasses.replace(SMALL, num_attention_heads=12) if "heads" in field else SMALL
    changed = dataclasses.replace(base, **{field: ANOTHER_VALUE[field]})
    assert getattr(base, field) != getattr(changed, field)
    if field == "initializer_range":
        drawn = [
            nnx.to_pure_dict(nnx.state(qwen3.Qwen3(c, rngs=nnx.Rngs(0)), nnx.Param))
            for c in (SQUARE, dataclasses.replace(SQUARE, initializer_range=0.1))
        ]
        ratios = jax.tree.map(lambda a, b: float(b.std() / a.std()) if a.std() else 5, *drawn)
        np.testing.assert_allclose(jax.tree.leaves(ratios), 5, rtol=1e-5)
    elif field in ("rope_theta", "rope_scaling", "rms_norm_eps"):
        assert shapes(base) == shapes(changed)
        params = random_params(base)
        logits = [forward(build(config, params), TOKENS) for config in (base, changed)]
        assert relative_error(*logits) > 1e-3
    else:
        assert shapes(base) != shapes(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_key_value_heads": 3},
            r"num_attention_heads=4 is .*_heads=3: .*\[1, 2, 4\]",
        ),
        ({"num_key_value_heads": 8}, r"num_attention_heads=4 is not a multiple"),
        ({"head_dim": 7}, "head_dim=7 is odd.*6 or 8"),
        ({"head_dim": 1}, "head_dim=1 is odd.*2"),
        ({"hidden_size": 0}, "hidden_size=0 is not a size; use an integer of 1 or more"),
        ({"vocab_size": 256.0}, "vocab_size=256.0 is not a size"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True is not a size"),
        ({"rope_theta": 1.0}, "rope_theta=1.0 is out of range; use a finite one above 1"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps=0.0 is out of range"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is out of range"),
        ({"initializer_range": float("inf")}, "initializer_range=inf is out of range"),
        ({"initializer_range": "small"}, "initializer_range='small' is not a number"),
        ({"attention_bias": None}, "attention_bias=None is not a choice; use True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 is not a choice; use True"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("form", [lambda state: state, nnx.to_pure_dict], ids=["state", "dict"])
def test_matrix_axes_are_those_of_the_layers_kernels(form):
    config = dataclasses.replace(SMALL, num_hidden_layers=5)
    params = form(nnx.state(abstract(config), nnx.Param))
    numbers = qwen3.matrix_dimension_numbers(params)
    chex.assert_trees_all_equal_structs(
        jax.tree.map(lambda _: 0, params),
        jax.tree.map(lambda _: 0, numbers, is_leaf=is_number),
    )
    found = jax.tree_util.tree_leaves_with_path(numbers, is_leaf=is_number)
    axes = {}
    for (path, number), leaf in zip(found, jax.tree.leaves(params), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        auxiliary = "embed" in name or "norm" in name or "lm_head" in name
        assert (number is None) == auxiliary, name
        if number is not None:
            assert leaf.ndim == 3
            assert leaf.shape[0] == config.num_hidden_layers
            axes[name] = leaf.shape[number.reduction_axis], leaf.shape[number.output_axis]
    assert axes == {
        "layers/attention/query/kernel": (8, 24),
        "layers/attention/key/kernel": (8, 12),
        "layers/attention/value/kernel": (8, 12),
        "layers/attention/output/kernel": (24, 8),
        "layers/mlp/gate/kernel": (8, 12),
        "layers/mlp/up/kernel": (8, 12),
        "layers/mlp/down/kernel": (12, 8),
    }


def is_number(x):
    """A leaf of a tree of dimension numbers."""
    return x is None or isinstance(x, MuonDimensionNumbers)


@pytest.mark.slow
@pytest.mark.parametrize("as_dict", [False, True], ids=["state and callable", "dict and tree"])
def test_the_muon_of_optax_takes_the_axes_unchanged(as_dict):
    state = nnx.state(build(SMALL, random_params(SMALL)), nnx.Param)
    params = nnx.to_pure_dict(state) if as_dict else state
    numbers = qwen3.matrix_dimension_numbers
    transformation = optax.contrib.muon(
        1.0, muon_weight_dimension_numbers=numbers(params) if as_dict else numbers
    )
    random = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda x: jnp.asarray(random.standard_normal(x.shape), jnp.float32), params
    )
    updates, _ = jax.jit(transformation.update)(gradients, transformation.init(params), params)
    kernels = updates["layers"]["mlp"]["down"]["kernel"]
    for layer in np.asarray(kernels if as_dict else kernels[...]):
        values = np.linalg.svd(layer, compute_uv=False)
        assert values.min() > 0.5 * values.max()


def test_an_nnx_optimizer_trains_the_model_and_compiles_once():
    model = build(SMALL, random_params(SMALL))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        loss, gradients = nnx.value_and_grad(next_token_loss)(model, TOKENS)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert len(traces) == 1
    graph, state = nnx.split(model)
    np.testing.assert_array_equal(forward(nnx.merge(graph, state), TOKENS), forward(model, TOKENS))
