"""The chunked next-token loss against a float64 NumPy rewrite, on meshes, and through a model."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import models.cross_entropy
from models.cross_entropy import cross_entropy, next_token_weights
from tests.models import qwen3_oracle
from tests.models.qwen3_cases import build, golden, relative_error

BATCH, TIME, WIDTH, VOCABULARY = 8, 10, 12, 32
# Two float32 programs over the same numbers; observed: 6e-7.
ROUNDING = 3e-6
P = PartitionSpec


@pytest.fixture(scope="module")
def inputs():
    """Hidden states, head, targets and weights, some 0 with a target that is not a token."""
    random = np.random.default_rng(0)
    weights = random.random((BATCH, TIME)) * (random.random((BATCH, TIME)) < 0.7)
    targets = random.integers(VOCABULARY, size=(BATCH, TIME))
    return (
        jnp.asarray(2 * random.standard_normal((BATCH, TIME, WIDTH)), jnp.float32),
        jnp.asarray(random.standard_normal((WIDTH, VOCABULARY)), jnp.float32),
        jnp.asarray(np.where(weights == 0, -100, targets), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


@functools.partial(jax.jit, static_argnames=("chunk_size", "groups"))
def evaluate(hidden, kernel, targets, weights=None, **options):
    """Loss, and its gradient by hidden states and head."""
    return jax.value_and_grad(
        lambda *x: cross_entropy(*x, targets, weights=weights, **options), (0, 1)
    )(hidden, kernel)


def rewrite(hidden, kernel, targets, weights):
    """The same in float64 NumPy, one position at a time."""
    hidden, kernel, weights = (np.asarray(x, np.float64) for x in (hidden, kernel, weights))
    loss, d_hidden, d_kernel = 0.0, np.zeros_like(hidden), np.zeros_like(kernel)
    for place in zip(*np.nonzero(weights), strict=True):
        scores = hidden[place] @ kernel
        scores -= np.log(np.exp(scores).sum())
        loss -= weights[place] * scores[targets[place]]
        slope = np.exp(scores)
        slope[targets[place]] -= 1
        d_hidden[place] = weights[place] * kernel @ slope
        d_kernel += weights[place] * np.outer(hidden[place], slope)
    total = weights.sum()
    return loss / total, (d_hidden / total, d_kernel / total)


def errors(got, expected):
    """The largest relative error of loss and gradients."""
    return max(jax.tree.leaves(jax.tree.map(relative_error, got, expected)))


# 10 = 10 * 1 = 4 + 3 + 3
@pytest.mark.parametrize(("chunk_size", "groups"), [(1, 8), (4, 2), (None, 1)])
def test_loss_and_gradient_equal_the_float64_rewrite(inputs, chunk_size, groups):
    got = evaluate(*inputs, chunk_size=chunk_size, groups=groups)
    assert errors(got, rewrite(*inputs)) < ROUNDING


def test_without_weights_every_position_counts_the_same_and_targets_may_be_bytes(inputs):
    hidden, kernel, targets, _ = inputs
    targets = jnp.maximum(targets, 0).astype(jnp.uint8)
    expected = rewrite(hidden, kernel, targets, np.ones(targets.shape))
    assert errors(evaluate(hidden, kernel, targets, chunk_size=4), expected) < ROUNDING


def test_weights_of_zero_give_a_loss_of_zero(inputs):
    hidden, kernel, targets, weights = inputs
    for leaf in jax.tree.leaves(evaluate(hidden, kernel, targets, 0 * weights, chunk_size=4)):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_no_array_is_as_large_as_all_logits(inputs):
    program = evaluate.lower(*inputs, chunk_size=2).as_text()
    sizes = {
        math.prod(map(int, shape.split("x")))
        for shape in re.findall(r"tensor<([\dx]+)x\w+>", program)
    }
    assert BATCH * 2 * VOCABULARY in sizes
    assert max(sizes) < BATCH * TIME * VOCABULARY / 2


def test_the_usual_chunk_fits_its_budget_on_each_device(inputs, monkeypatch):
    monkeypatch.setattr(models.cross_entropy, "CHUNK_LOGITS", BATCH * VOCABULARY)

    def chunks(hidden, kernel, targets, weights):
        def loss(hidden):
            return cross_entropy(jnp.tanh(hidden), kernel, targets, weights=weights)

        return int(re.findall(r"length=(\d+)", str(jax.jit(loss).trace(hidden).jaxpr))[0])

    assert chunks(*inputs) == TIME
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    hidden = jax.device_put(inputs[0], NamedSharding(mesh, P("data")))
    assert chunks(hidden, *inputs[1:]) == 3
    with jax.set_mesh(mesh):
        assert chunks(*inputs) == 3


def test_half_precision_has_half_operands_and_single_sums(inputs):
    hidden, *others = inputs
    half = hidden.astype(jnp.bfloat16)
    program = evaluate.lower(half, *others, chunk_size=4).as_text()
    products = re.findall(r"dot_general.*: \((.*)\) -> tensor<\S*x(\w+)>", program)
    assert len(products) == 3
    assert all(types.count("bf16") == 2 and out == "f32" for types, out in products)
    loss, (d_hidden, d_kernel) = evaluate(half, *others, chunk_size=4)
    assert (loss.dtype, d_hidden.dtype, d_kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    # bfloat16 keeps 8 bits: 4e-3 a rounding. Observed: 7e-3.
    d_hidden = d_hidden.astype(jnp.float32)
    assert 1e-4 < errors((loss, (d_hidden, d_kernel)), rewrite(*inputs)) < 2e-2


@pytest.mark.parametrize(
    "axis_type",
    [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit],
    ids=lambda t: t.name,
)
@pytest.mark.parametrize(
    ("rows", "head"),
    [
        (P(("data", "tensor")), P()),
        (P(), P(None, "tensor")),
        (P("data"), P(None, "tensor")),
        (P("data"), P("data", None)),
    ],
    ids=["batch", "vocabulary", "both", "fully sharded"],
)
def test_any_layout_gives_the_same_loss_and_gradient(inputs, axis_type, rows, head):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        laid_out = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(inputs, (rows, head, rows, rows), strict=True)
        ]
        compiled = evaluate.lower(*laid_out, chunk_size=4).compile()
    assert errors(compiled(*laid_out), rewrite(*inputs)) < ROUNDING
    # A head that is spread over the vocabulary stays where it is, and so do the logits.
    if head == P(None, "tensor"):
        assert "all-gather" not in str(compiled.as_text())


@pytest.fixture(scope="module")
def packed():
    """A model of the golden file, and a function of its tokens: loss and gradient in rows of 12."""
    case = golden("untied_ratio2")
    graph, params = nnx.split(build(case["config"], case["params"]), nnx.Param)

    @jax.jit
    def evaluate(tokens, segment_ids, weights):
        def loss(params):
            model = nnx.merge(graph, params)
            hidden = model.hidden_states(tokens[:, :-1], segment_ids=segment_ids[:, :-1])
            return cross_entropy(hidden, model.head, tokens[:, 1:], weights=weights, chunk_size=4)

        loss, gradients = jax.value_and_grad(loss)(params)
        return loss, nnx.to_pure_dict(gradients)

    return case, evaluate


@pytest.mark.slow
def test_a_model_gets_the_loss_and_gradient_of_hugging_face(packed):
    case, evaluate = packed
    tokens = case["tokens"]
    loss, gradients = evaluate(tokens, jnp.zeros_like(tokens), jnp.ones((2, 11)))
    assert relative_error(loss, case["loss"]) < 1e-5
    assert errors(gradients, case["gradients"]) < 1e-4


@pytest.mark.slow
def test_packed_documents_have_the_loss_of_separate_ones_and_nothing_of_each_other(packed):
    case, evaluate = packed
    tokens = case["tokens"]
    # Documents of 5 and 7 tokens; of 8 and 3 and one of filling.
    segment_ids = jnp.asarray([[1] * 5 + [2] * 7, [1] * 8 + [2] * 3 + [0]])
    documents = [tokens[:1, :5], tokens[:1, 5:], tokens[1:, :8], tokens[1:, 8:11]]
    weights = next_token_weights(segment_ids, padding=0)
    np.testing.assert_array_equal(weights.sum(1), [4 + 6, 7 + 2])
    losses = [qwen3_oracle.loss(case["params"], case["config"], each) for each in documents]
    expected = np.average(losses, weights=[each.size - 1 for each in documents])
    loss, _ = evaluate(tokens, segment_ids, weights)
    assert relative_error(loss, expected) < 1e-5
    # The loss of one document is its own, and its gradient does not know the tokens of the others.
    one = np.zeros((2, 12), bool)
    one[0, 5:] = True
    weights = jnp.where(one[:, 1:], weights, 0)
    other = jnp.where(one, tokens, (tokens + 1) % case["config"].vocab_size)
    first, second = (evaluate(rows, segment_ids, weights) for rows in (tokens, other))
    assert relative_error(first[0], losses[1]) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # Without the boundary the others are seen.
    assert relative_error(evaluate(other, 0 * segment_ids, weights)[0], losses[1]) > 1e-3


def test_without_padding_every_id_is_a_document():
    segment_ids = jnp.asarray([[0, 0, 3, 3, 3, 0]])
    np.testing.assert_array_equal(next_token_weights(segment_ids), [[1, 0, 1, 1, 0]])


def test_an_unknown_target_inside_jit_shows_as_nan(inputs):
    hidden, kernel, targets, weights = inputs
    place = tuple(np.argwhere(np.asarray(weights) > 0)[0])
    for wrong in (-1, VOCABULARY):
        loss, gradients = evaluate(hidden, kernel, targets.at[place].set(wrong), weights)
        assert np.isnan(loss)
        assert all(np.isnan(gradient).any() for gradient in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": jnp.ones((10, 12))}, r"hidden is float32\[10, 12\] and kernel is .*\[12, 32\]"),
        ({"kernel": jnp.ones((32, 12))}, r"kernel is float32\[32, 12\]; use floats \[batch, time"),
        ({"kernel": jnp.ones((12, 32), int)}, r"kernel is int32\[12, 32\]"),
        ({"targets": jnp.ones((8, 11), int)}, r"targets are int32\[8, 11\]; use .*\[8, 10\]"),
        ({"targets": jnp.ones((8, 10))}, r"targets are float32\[8, 10\]; use integers"),
        ({"targets": jnp.full((8, 10), 32)}, r"targets range from 0 to 32, .* 0 to 31, or weight"),
        ({"targets": jnp.full((8, 10), -1)}, r"targets range from -1 to 0"),
        ({"weights": jnp.ones(8)}, r"weights have shape \[8\]; use \[8, 10\]"),
        ({"groups": 3}, "groups=3 does not divide a batch of 8; use a divisor"),
        ({"chunk_size": 0}, "chunk_size=0 holds no position; use 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, change, message):
    arguments = dict(zip(("hidden", "kernel", "targets", "weights"), inputs, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        cross_entropy(**arguments)
