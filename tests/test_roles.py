"""What counts as a matrix, along which axes, and what the errors say."""

import dataclasses
import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import by_path, muon
from mimuon_jax.engine.axes import batch_shape, from_matrices, matrix_shape, to_matrices
from mimuon_jax.transforms import roles as module
from mimuon_jax.transforms.roles import check_every_entry_is_used, roles


def why(path: str, shape: tuple[int, ...]) -> str:
    """The default rule's reason for one parameter at a path."""
    tree = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name in reversed(path.split("/")):
        tree = {name: tree}
    return roles(tree)[0].why


@pytest.mark.parametrize(
    ("path", "shape", "reason"),
    [
        ("Dense_0/kernel", (4, 8), "matrix"),
        # Only the parameter's own name and its owner's count.
        ("PreNormBlock_0/Dense_0/kernel", (4, 8), "matrix"),
        ("AdaLN_0/Dense_0/kernel", (4, 8), "matrix"),
        ("embedding_net/Dense_0/kernel", (4, 8), "matrix"),
        ("PolicyHead_0/hidden/kernel", (4, 8), "matrix"),
        ("Head_0/query/kernel", (4, 8), "matrix"),
        ("AddNorm_0/FeedForward_0/kernel", (4, 8), "matrix"),
        ("SpectralNorm_0/Dense_0/kernel", (4, 8), "matrix"),
        ("TimestepEmbedding_0/Dense_0/kernel", (4, 8), "matrix"),
        ("embed_to_hidden/kernel", (4, 8), "matrix"),
        ("token_mixing/kernel", (4, 8), "matrix"),
        ("attention/output/kernel", (4, 8), "matrix"),
        ("attention/output", (4, 8), "matrix"),
        ("linear_pos/kernel", (4, 8), "matrix"),
        ("lora/lora_b", (4, 8), "matrix"),
        ("lora/b", (4, 8), "matrix"),
        ("attention/value", (4, 8), "matrix"),
        ("W_Q", (4, 8), "matrix"),
        ("blocks/0/kernel", (4, 8), "matrix"),
        ("0", (4, 8), "matrix"),
        ("tok_embs", (4, 8), "names an embedding"),
        ("pos_enc", (4, 8), "names an embedding"),
        ("pos_embed", (1, 4, 8), "names an embedding"),
        ("W_E", (4, 8), "names an embedding"),
        ("W_pos", (4, 8), "names an embedding"),
        ("patch_embed/kernel", (4, 4, 3, 8), "names an embedding"),
        ("cls_token", (1, 1, 8), "names a token"),
        ("vq/codebook", (4, 8), "names a table of vectors"),
        ("classifier/kernel", (4, 8), "names an output head"),
        ("score/kernel", (4, 8), "names an output head"),
        ("vocab_proj", (4, 8), "names an output head"),
        ("W_U", (4, 8), "names an output head"),
        ("output/kernel", (4, 8), "names an output head"),
        ("heads/kernel", (4, 8), "names an output head"),
        ("value_head/kernel", (4, 8), "names an output head"),
        ("head/0/kernel", (4, 8), "names an output head"),
        ("router/kernel", (4, 8), "names a router"),
        ("mlp/b", (6, 8), "names a bias"),  # scanned layers
        ("mlp/b1", (6, 8), "names a bias"),
        ("attention/bq", (6, 8), "names a bias"),
        ("gru/b_hh", (6, 8), "names a bias"),
        ("block/alpha", (6, 8), "names a gain"),
        ("block/shift", (6, 8), "names a gain"),
        ("block/ls", (6, 8), "names a gain"),
        ("mixer/A_log", (6, 8), "names a gain"),
        ("rms/weight", (6, 8), "names a norm"),
        ("blocks/conv1d/kernel", (3, 4, 8), "convolution"),
        ("Conv2D_0/kernel", (3, 1, 4, 8), "convolution"),
        ("conv2d_transpose/kernel", (3, 3, 6, 4), "convolution"),
        ("depthwise_conv2d/kernel", (3, 3, 8, 1), "depthwise convolution"),
        ("separable/depthwise_kernel", (3, 3, 8, 1), "depthwise convolution"),
        ("conv_grouped/kernel", (3, 3, 2, 8), "grouped convolution"),
        ("w", (4, 8), "matrix"),
        ("MultiHeadDotProductAttention_0/kernel", (4, 8), "matrix"),
        ("multi_head/kernel", (4, 8), "matrix"),
        ("rescale/kernel", (4, 8), "matrix"),
        ("Conv_0/kernel", (3, 3, 4, 8), "convolution"),
        ("stem/conv1/kernel", (3, 4, 8), "convolution"),
        ("ConvTranspose_0/kernel", (3, 3, 4, 8), "convolution"),
        ("Conv_0/kernel", (3, 3, 1, 8), "depthwise convolution"),
        ("Dense_0/bias", (8,), "vector"),
        ("temperature", (), "scalar"),
        ("layers/Dense_0/bias", (6, 8), "names a bias"),  # scanned layers
        ("layers/mlp/gain", (6, 8), "names a gain"),
        ("layers/LayerNorm_0/scale", (6, 8), "names a norm"),
        ("layers/q_norm/scale", (6, 8), "names a norm"),
        ("h/ln_1/scale", (6, 8), "names a norm"),
        ("BatchNorm_0/scale", (6, 8), "names a norm"),
        ("RMSNorm_0/weight", (6, 8), "names a norm"),
        ("Embed_0/embedding", (9, 4), "names an embedding"),
        ("embed_tokens/kernel", (9, 4), "names an embedding"),
        ("transformer/wte", (9, 4), "names an embedding"),
        ("pos_embedding", (1, 9, 4), "names an embedding"),
        ("lm_head/kernel", (4, 9), "names an output head"),
        ("Head_0/kernel", (4, 9), "names an output head"),
        ("head/kernel", (4, 9), "names an output head"),
        ("logits_dense/kernel", (4, 9), "names an output head"),
        ("Dense_0/kernel", (0, 8), "empty"),
    ],
)
def test_default_rule(path, shape, reason):
    assert why(path, shape) == reason


@pytest.mark.parametrize(
    ("path", "shape", "numbers"),
    [
        ("attention/key/kernel", (32, 4, 8), Numbers(0, (1, 2))),
        ("attention/q_proj/kernel", (32, 4, 8), Numbers(0, (1, 2))),
        ("attention/out/kernel", (4, 8, 32), Numbers((0, 1), 2)),
        ("ConvFormer_0/Block_0/query/kernel", (16, 4, 4), Numbers(0, (1, 2))),
        ("ConvNeXtBlock_0/Dense_0/kernel", (6, 64, 256), Numbers(1, 2)),
        ("ConvMixer/experts/w1", (8, 64, 256), Numbers(1, 2)),
        ("blocks/Conv1D_0/kernel", (6, 3, 4, 4), Numbers((1, 2), 3)),
        ("mlp/~/linear_0/w", (6, 64, 256), Numbers(1, 2)),
        # More than one reading: scanned layers, or heads of another size.
        ("layers/query/kernel", (6, 32, 32), None),
        ("layers/out/kernel", (6, 32, 32), None),
        ("layers/key/kernel", (32, 2, 8), None),
        ("blocks/mlp/kernel", (2, 3, 4), None),
        ("blocks/mlp/kernel", (2, 2, 3, 4), None),
        ("blocks/Conv_0/kernel", (6, 3, 4, 4), None),  # a 6 x 3 kernel, or six kernels of size 3
        ("Conv_0/kernel", (6, 3, 3, 4, 8), None),
        ("conv/weight", (8, 4, 3, 3), None),  # PyTorch's order, or Flax's
        (
            "conv_transpose/w",
            (3, 3, 4, 8),
            None,
        ),  # Haiku's order, or Flax's
    ],
)
def test_an_array_of_unknown_axes_is_an_error_that_proposes_no_guess(path, shape, numbers):
    keys = ("mlp/~/linear_0", "w") if "~" in path else tuple(path.split("/"))
    params = {"other": {"array": jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)}}
    node = params
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match="unknown") as error:
        roles(params)
    text = str(error.value)
    assert f"{path!r} of shape {shape}" in text
    assert "other/array" in text
    (written,) = re.findall(r"matrices=(\{.*\}) \(", text)
    given = eval(written, {"MuonDimensionNumbers": Numbers}) | {"other": None}
    if numbers is None:  # what to fill in, which does not run as it is
        assert "Numbers(reduction_axis=..., output_axis=...)" in written
        with pytest.raises(ValueError, match="does not fit"):
            roles(params, given)
    else:
        decided = {role.path: role.numbers for role in roles(params, given)}
        assert decided == {path: numbers, "other/array": None}


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
        check_every_entry_is_used(PARAMS, {"upp": Numbers(1, 2)})
    assert "embed" in str(error.value)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.permutations([0, 1, 2, 3]), st.integers(1, 2), st.integers(1, 2))
def test_views_round_trip(axes, reductions, outputs):
    shape = (2, 3, 4, 5)
    numbers = Numbers(tuple(axes[:reductions]), tuple(axes[reductions : reductions + outputs]))
    x = np.arange(120.0, dtype=np.float32).reshape(shape)
    view = to_matrices(jnp.asarray(x), numbers)
    assert view.shape[1:] == matrix_shape(shape, numbers)
    np.testing.assert_array_equal(from_matrices(view, shape, numbers), x)


def test_a_convolution_is_one_matrix_of_patches():
    kernel = np.arange(3 * 3 * 4 * 8, dtype=np.float32).reshape(3, 3, 4, 8)
    view = to_matrices(jnp.asarray(kernel), Numbers((0, 1, 2), 3))
    np.testing.assert_array_equal(view, kernel.reshape(1, 36, 8))


def test_names_are_the_same_for_every_container():
    class Block(nnx.Module):
        def __init__(self):
            self.up = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
            self.norm = nnx.RMSNorm(8, rngs=nnx.Rngs(0))

    state = nnx.state(Block(), nnx.Param)
    expected = [("norm/scale", "vector"), ("up/bias", "vector"), ("up/kernel", "matrix")]
    for tree in (state, nnx.to_pure_dict(state), FrozenDict(nnx.to_pure_dict(state))):
        assert [(role.path, role.why) for role in roles(tree)] == expected


def test_an_entry_for_value_is_for_value_alone():
    params = {"query": jnp.ones((4, 8)), "key": jnp.ones((4, 8)), "value": jnp.ones((4, 8))}
    given = {role.path: role.numbers for role in roles({"attn": params}, {"attn": {"value": None}})}
    assert given == {
        "attn/key": Numbers(0, 1),
        "attn/query": Numbers(0, 1),
        "attn/value": None,
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """Arrays as attributes, as in a module of the user's own."""

    key: jax.Array
    value: jax.Array


def test_an_attribute_called_value_is_a_name_beside_others():
    params = Attention(jnp.ones((4, 8)), jnp.ones((4, 8)))
    assert [role.path for role in roles({"attn": params})] == ["attn/key", "attn/value"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Array:
    """A box for one array, as Haliax's and Qwix's."""

    array: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Quantized:
    """Integers and their scales."""

    qvalue: jax.Array
    scale: jax.Array


def test_boxes_are_not_names():
    params = {
        "embedding": {"weight": Array(jnp.ones((9, 4)))},
        "head": {"kernel": Array(Quantized(jnp.ones((4, 9)), jnp.ones((1, 9))))},
        "up": {"kernel": Array(jnp.ones((4, 8)))},
    }
    found = {role.path: role.why for role in roles(params)}
    assert found["embedding/weight"] == "names an embedding"
    assert found["head/kernel"] == "names an output head"
    assert found["up/kernel"] == "matrix"


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
        ValueError, match=r"'keys' finds no parameter.*attention/key, attention/value"
    ):
        roles(params, by_path({"value": None, "keys": None, "attention": None}))
    with pytest.raises(ValueError, match="not a regular expression"):
        by_path({"(": None})
    with pytest.raises(ValueError, match="MuonDimensionNumbers"):
        by_path({"key": "matrix"})


def test_numbers_of_the_whole_tree_are_right_for_a_part_of_it():
    numbers = {"embed": None, "up": Numbers(1, 2), "bias": None}
    side = masked(PARAMS, "embed", "bias")
    for matrices in (numbers, by_path({"embed": None, "up": Numbers(1, 2)})):
        check_every_entry_is_used(side, matrices)
        assert [role.numbers for role in roles(side, matrices)] == [Numbers(1, 2)]
    by_name = lambda params: {"up": Numbers(1, 2) if params["embed"].ndim < 3 else None}  # noqa: E731
    assert [role.numbers for role in roles(side, by_name)] == [Numbers(1, 2)]
    optimizers = {"fast": muon(1e-2, matrices=numbers), "slow": muon(1e-3, matrices=numbers)}
    tx = optax.multi_transform(optimizers, {"embed": "slow", "up": "fast", "bias": "slow"})
    with jax.numpy_dtype_promotion("standard"):  # for the Adam of optax
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_absent_parameters_may_have_an_entry():
    check_every_entry_is_used(PARAMS | {"b": None}, {"b": None, "up": Numbers(1, 2)})
    with pytest.raises(ValueError, match="'c'"):
        check_every_entry_is_used(PARAMS | {"b": None}, {"c": None})


def test_a_leaf_that_is_not_an_array_is_one_clear_line():
    with pytest.raises(ValueError, match=r"'relu'.*which is not an array"):
        roles({"w": jnp.ones((2, 2)), "activation": "relu"})


def test_linen_parameters():
    model = flax.linen.Sequential([flax.linen.Embed(9, 4), flax.linen.Dense(8)])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1,), jnp.int32))["params"]
    assert [role.why for role in roles(params)] == ["names an embedding", "vector", "matrix"]


def masked(tree: dict, *names: str) -> dict:
    """The tree with some of its leaves masked, as one side of `partition` sees it."""
    return tree | dict.fromkeys(names, optax.MaskedNode())


def test_a_function_is_called_once_per_structure_and_shapes():
    calls = []

    def matrices(params):
        calls.append(params)
        return {"up": Numbers(1, 2) if params["embed"].shape == (9, 4) else Numbers(0, 2)}

    whole = roles(PARAMS, matrices)
    assert roles(jax.tree.map(jnp.copy, PARAMS), matrices) == whole
    # A part of the tree agrees with the whole, though `embed` has no shape there.
    assert roles(masked(PARAMS, "embed", "bias"), matrices) == [whole[2]]
    assert len(calls) == 1
    other = roles(PARAMS | {"embed": jnp.ones((8, 4))}, matrices)
    assert [role.numbers for role in other] == [None, None, Numbers(0, 2)]
    assert len(calls) == 2


def test_a_function_that_fails_is_called_again():
    answers = [{"up": Numbers(0, 3)}, {"up": Numbers(1, 2)}]
    matrices = lambda params: answers.pop(0)  # noqa: E731
    with pytest.raises(ValueError, match="does not fit"):
        roles(PARAMS, matrices)
    assert roles(PARAMS, matrices)[2].numbers == Numbers(1, 2)


def test_a_changed_tree_of_numbers_is_read_again():
    numbers = {"up": Numbers(1, 2)}
    assert roles(PARAMS, numbers)[2].numbers == Numbers(1, 2)
    numbers["up"] = Numbers(0, 2)
    assert roles(PARAMS, numbers)[2].numbers == Numbers(0, 2)
    roles(PARAMS, numbers).clear()  # the caller's own list
    assert len(roles(PARAMS, numbers)) == 3


def test_axes_may_be_lists():
    assert roles(PARAMS, {"up": Numbers([0, 1], [2])})[2].numbers == Numbers([0, 1], [2])


def test_memory_of_roles_is_bounded():
    for size in range(2, 400):
        roles({"w": jax.ShapeDtypeStruct((size, 2), jnp.float32)})
    assert len(module._DECIDED) <= module._REMEMBERED
