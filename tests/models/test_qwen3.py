"""The Qwen3 decoder against a NumPy rewrite, the Hugging Face implementation and its own laws."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import models.qwen3 as qwen3
from tests.models import make_qwen3_golden, qwen3_oracle
from tests.models.qwen3_cases import (
    NAMES,
    SQUARE,
    abstract,
    build,
    forward,
    from_reference,
    golden,
    loss_and_gradients,
    next_token_loss,
    random_params,
    relative_error,
)

# Float32 against float64 over 2 or 3 layers; observed: 6e-7 to 2.2e-6 on logits, and between two
# float32 programs up to 1.7e-5 on gradients.
LOGITS, GRADIENTS = 1e-5, 1e-4


# A ratio of queries to keys of 4 runs by default; compiling is expensive.
@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n != "tied_ratio4")) for n in NAMES],
)
def case(request):
    """A random model with the Hugging Face implementation's logits and gradients."""
    return golden(request.param)


@pytest.fixture(scope="module")
def known():
    """Config, model and tokens of one case: no tied head, two queries a key, three layers."""
    case = golden("untied_ratio2")
    return case["config"], build(case["config"], case["params"]), case["tokens"]


def test_logits_equal_the_float64_rewrite(case):
    model = build(case["config"], case["params"])
    logits = forward(model, case["tokens"])
    expected = qwen3_oracle.logits(case["params"], case["config"], case["tokens"])
    assert logits.dtype == jnp.float32
    assert relative_error(logits, expected) < LOGITS
    assert relative_error(case["logits"], expected) < LOGITS


@pytest.mark.parametrize(
    "scaling",
    [
        qwen3.RotaryScaling(rope_type="linear", factor=3.0),
        qwen3.RotaryScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=2.0,
            beta_slow=0.25,
        ),
        qwen3.RotaryScaling(
            rope_type="yarn", factor=2.0, original_max_position_embeddings=30, beta_fast=4.0,
            attention_factor=0.7, truncate=False,
        ),
    ],
    ids=lambda scaling: scaling.rope_type,
)  # fmt: skip
def test_scaled_rotation_and_biases_equal_the_float64_rewrite(scaling):
    config = dataclasses.replace(
        golden("untied_ratio2")["config"], head_dim=12, attention_bias=True, rope_scaling=scaling
    )
    params = random_params(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(config.vocab_size, size=(1, 24)))
    expected = qwen3_oracle.logits(params, config, tokens)
    assert relative_error(forward(build(config, params), tokens), expected) < LOGITS


def test_logits_loss_and_gradients_equal_those_of_hugging_face(case):
    assert_parity(case)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_live_hugging_face_models_agree(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    settings = make_qwen3_golden.CASES[name]
    assert_parity(from_reference(make_qwen3_golden.reference(settings, seed=99), settings))


def assert_parity(case):
    """Our logits, loss and every gradient are those of the case."""
    model = build(case["config"], case["params"])
    logits = forward(model, case["tokens"])
    assert relative_error(logits, case["logits"]) < LOGITS
    loss, gradients = loss_and_gradients(model, case["tokens"])
    assert relative_error(loss, case["loss"]) < LOGITS
    chex.assert_trees_all_equal_structs(gradients, case["gradients"])
    errors = jax.tree.map(relative_error, gradients, case["gradients"])
    assert max(jax.tree.leaves(errors)) < GRADIENTS, errors


def test_gradients_are_finite_differences_of_the_float64_rewrite():
    case = golden("tied_ratio4")
    config, tokens, params = case["config"], case["tokens"], case["params"]
    _, gradients = loss_and_gradients(build(config, params), tokens)
    random = np.random.default_rng(0)
    start = qwen3_oracle.as_float64(params)
    leaves, structure = jax.tree.flatten(start)
    for index, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
        direction = random.standard_normal(leaf.shape)
        values = [
            qwen3_oracle.loss(
                jax.tree.unflatten(
                    structure, [*leaves[:index], leaf + step * direction, *leaves[index + 1 :]]
                ),
                config,
                tokens,
            )
            for step in (1e-5, -1e-5)
        ]
        slope = (values[0] - values[1]) / 2e-5
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(np.sum(np.asarray(gradient) * direction) - slope) < 1e-5 * scale


def test_a_token_changes_no_logit_before_it(known):
    config, model, tokens = known
    for position in (5, 11):
        changed = tokens.at[:, position].set((tokens[:, position] + 1) % config.vocab_size)
        before, after = forward(model, tokens), forward(model, changed)
        np.testing.assert_array_equal(before[:, :position], after[:, :position])
        assert np.abs(np.asarray(before - after)[:, position:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_packed_documents_equal_separate_ones(known, restart):
    config, model, tokens = known
    segment_ids = jnp.asarray([[0] * 5 + [1] * 7, [7] * 8 + [3] * 4])
    positions = None
    if restart:
        positions = jnp.asarray([[*range(5), *range(7)], [*range(8), *range(4)]])
    packed = forward(model, tokens, segment_ids=segment_ids, positions=positions)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for row, cut in ((0, 5), (1, 8)):
        for part in (slice(0, cut), slice(cut, 12)):
            alone = qwen3_oracle.logits(params, config, tokens[row : row + 1, part])
            assert relative_error(packed[row, part], alone[0]) < LOGITS
    assert relative_error(forward(model, tokens), packed) > 1e-2


def test_positions_turn_queries_and_keys_by_differences_only(known):
    _, model, tokens = known
    usual = forward(model, tokens)
    shifted = forward(model, tokens, positions=jnp.arange(40, 52)[None, :])
    stretched = forward(model, tokens, positions=3 * jnp.arange(12)[None, :])
    assert relative_error(shifted, usual) < 2e-5  # observed: 4e-6, from rounding angles near 50
    assert relative_error(stretched, usual) > 1e-2


def test_logits_are_the_head_times_the_hidden_states(known):
    _, model, tokens = known
    hidden = jax.jit(lambda model: model.hidden_states(tokens))(model)
    expected = np.asarray(hidden, np.float64) @ np.asarray(model.lm_head.kernel[...], np.float64)
    assert relative_error(forward(model, tokens), expected) < LOGITS
    assert relative_error(model.logits(hidden[0, 3]), expected[0, 3]) < LOGITS


def test_half_precision_compute_keeps_float32_parameters_gradients_and_logits(known):
    config, model, tokens = known
    half = build(config, nnx.to_pure_dict(nnx.state(model, nnx.Param)), dtype="bfloat16")
    logits = forward(half, tokens)
    assert logits.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 4e-3 a rounding. Observed: 3.5e-2 on these logits.
    assert 1e-4 < relative_error(logits, forward(model, tokens)) < 6e-2
    program = jax.jit(lambda model: model(tokens)).lower(half).as_text()
    operands = re.findall(r"dot_general.*: \((.*)\) ->", program)
    assert len(operands) == 10  # seven kernels, two products of attention, the head
    assert all(types.count("bf16") == 2 for types in operands)
    hidden = jax.eval_shape(lambda model: model.hidden_states(tokens), half)
    assert hidden.dtype == jnp.bfloat16
    loss, gradients = jax.eval_shape(lambda model: loss_and_gradients(model, tokens), half)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_parameters_can_be_stored_in_half_precision(known):
    config, _, tokens = known
    model = abstract(config, dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
    logits = jax.eval_shape(lambda model: model(tokens), model)
    assert (logits.dtype, logits.shape) == (jnp.float32, (2, 12, config.vocab_size))


def test_rematerialization_keeps_less_of_the_forward_pass(known):
    _, model, tokens = known

    def stored(remat):
        backward = jax.eval_shape(lambda m: jax.vjp(lambda m: m(tokens, remat=remat), m)[1], model)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert stored(functools.partial(jax.checkpoint, prevent_cse=False)) < 0.7 * stored(None)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_spread_over_eight_devices_gives_the_same_loss_and_gradients(known, axis_type):
    config, model, _ = known
    tokens = jax.random.randint(jax.random.key(0), (8, 8), 0, config.vocab_size)
    inputs = {"segment_ids": jnp.tile(jnp.arange(8) // 5, (8, 1))}
    expected = loss_and_gradients(model, tokens, **inputs)
    remat = functools.partial(jax.checkpoint, prevent_cse=False)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        model = jax.device_put(model, everywhere)
        tokens, inputs = jax.device_put((tokens, inputs), rows)
        got = loss_and_gradients(model, tokens, **inputs, remat=remat)
    # Other fusions and another order of sums; observed: 1.4e-6.
    errors = jax.tree.map(relative_error, got, expected)
    assert max(jax.tree.leaves(errors)) < LOGITS, errors
    for leaf in jax.tree.leaves(got):
        assert leaf.sharding.is_equivalent_to(everywhere, leaf.ndim)


def test_initial_parameters_are_normal_keyed_and_reproducible():
    config = dataclasses.replace(SQUARE, initializer_range=0.05)
    first, again, other = (
        nnx.to_pure_dict(nnx.state(qwen3.Qwen3(config, rngs=nnx.Rngs(seed)), nnx.Param))
        for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    matrices = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        if "norm" in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(leaf, np.ones_like(leaf))
        else:
            matrices += list(np.asarray(leaf).reshape(-1, 64, 64))
    assert len(matrices) == 7 * 3 + 2
    for matrix in matrices:
        assert abs(matrix.std() / 0.05 - 1) < 5 / np.sqrt(2 * matrix.size)
        assert abs(matrix.mean()) < 0.05 * 5 / np.sqrt(matrix.size)
    corners = {float(matrix[0, 0]) for matrix in matrices}
    assert len(corners) == len(matrices)
    assert float(other["embed"]["embedding"][0, 0]) not in corners


def test_the_first_loss_is_the_entropy_of_the_vocabulary():
    model = qwen3.Qwen3(SQUARE, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (2, 64), 0, 64)
    assert abs(float(jax.jit(next_token_loss)(model, tokens)) - np.log(64)) < 0.1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"tokens": [[0, 37]]}, "range from 0 to 37, but vocab_size=37 allows 0 to 36"),
        ({"tokens": [[-1, 3]]}, "range from -1 to 3"),
        ({"tokens": [1, 2]}, r"tokens are int32\[2\]; .*tokens\[None, :\]"),
        ({"tokens": [[0.5]]}, r"tokens are float32\[1, 1\]; use integers"),
        ({"tokens": [[]]}, r"at least one row and one column"),
        ({"segment_ids": [[0, 0, 0]]}, r"segment_ids are int32\[1, 3\]; .*\[1, 2\]"),
        ({"segment_ids": [[0.0, 0.0]]}, r"segment_ids are float32\[1, 2\]; use integers"),
        ({"positions": [[0, 1], [0, 1]]}, r"positions are int32\[2, 2\]; .*\[1, 2\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(known, inputs, message):
    _, model, _ = known
    arrays = {name: jnp.asarray(value) for name, value in ({"tokens": [[1, 2]]} | inputs).items()}
    with pytest.raises(ValueError, match=message):
        model(**arrays)


def test_an_unknown_token_inside_jit_shows_as_nan(known):
    _, model, tokens = known
    logits = forward(model, tokens.at[0, 3].set(37))
    assert np.isnan(logits[0]).all()
    assert np.isfinite(logits[1]).all()
