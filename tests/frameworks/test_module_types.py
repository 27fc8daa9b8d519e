"""Roles by module type, and their agreement with the roles by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mimuon_jax import by_path, describe, muon, roles_of
from mimuon_jax.engine.axes import axes_of
from mimuon_jax.transforms.proposals import proposal
from mimuon_jax.transforms.roles import Role, roles, roles_or_undecided

RNGS = nnx.Rngs(0)


def decided(tree: dict) -> dict[str, tuple | None]:
    """``{path: (reduction axes, output axes) or None}`` of a tree of roles."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Role))
    return {role.path: axes(role) for role in found}


def axes(role: Role) -> tuple | None:
    """Reduction and output axes, counted from the front and in order."""
    if role.numbers is None:
        return None
    _, reduction, output = axes_of(len(role.shape), role.numbers)
    return tuple(sorted(reduction)), tuple(sorted(output))


@pytest.mark.parametrize(
    ("layer", "kernels"),
    [
        (lambda rngs: nnx.Linear(3, 5, rngs=rngs), {"kernel": ((0,), (1,))}),
        (
            lambda rngs: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs),
            {"kernel": ((0, 1), (2, 3)), "bias": None},
        ),
        (
            lambda rngs: nnx.LinearGeneral(3, 5, batch_axis={0: 7}, rngs=rngs),
            {"kernel": ((1,), (2,)), "bias": None},
        ),
        (lambda rngs: nnx.Conv(4, 8, 3, rngs=rngs), {"kernel": ((0, 1), (2,))}),
        (lambda rngs: nnx.Conv(4, 8, (3, 1), rngs=rngs), {"kernel": ((0, 1, 2), (3,))}),
        (
            lambda rngs: nnx.Conv(1, 8, (3, 3), rngs=rngs),
            {"kernel": ((0, 1, 2), (3,))},
        ),  # gray pictures
        (lambda rngs: nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=rngs), {"kernel": None}),
        (lambda rngs: nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs), {"kernel": None}),
        (lambda rngs: nnx.ConvTranspose(4, 8, (3, 3), rngs=rngs), {"kernel": ((0, 1, 2), (3,))}),
        (
            lambda rngs: nnx.ConvTranspose(4, 8, (3, 3), transpose_kernel=True, rngs=rngs),
            {"kernel": ((0, 1, 3), (2,))},
        ),
        (
            lambda rngs: nnx.Einsum("btd,edf->ebtf", (7, 3, 5), rngs=rngs),  # a kernel per expert
            {"kernel": ((1,), (0, 2))},
        ),
        (lambda rngs: nnx.Einsum("ebtd,edf->ebtf", (7, 3, 5), rngs=rngs), {"kernel": ((1,), (2,))}),
        (lambda rngs: nnx.Embed(9, 4, rngs=rngs), {"embedding": None}),
        (
            lambda rngs: nnx.LoRA(3, 2, 5, rngs=rngs),
            {"lora_a": ((0,), (1,)), "lora_b": ((0,), (1,))},
        ),
        (
            lambda rngs: nnx.OptimizedLSTMCell(3, 5, rngs=rngs),
            {"dense_h/kernel": ((0,), (1,)), "dense_i/kernel": ((0,), (1,))},
        ),
        (lambda rngs: nnx.LayerNorm(4, rngs=rngs), {}),
    ],
)
def test_layers_of_nnx(layer, kernels):
    assert (
        decided(roles_of(nnx.eval_shape(layer, RNGS))) == kernels
    )  # no values: nothing is compiled


def test_attention_of_nnx():
    model = nnx.MultiHeadAttention(4, 32, qkv_features=32, decode=False, rngs=RNGS)
    found = decided(roles_of(model))
    assert found["key/kernel"] == ((0,), (1, 2))
    assert found["out/kernel"] == ((0, 1), (2,))
    assert found["query/bias"] is None
    # The rule by name cannot tell them; its proposals agree.
    params = nnx.state(model, nnx.Param)
    for role in roles_or_undecided(params):
        if role.rule == "undecided":
            numbers = proposal(tuple(role.path.split("/")), role.shape)
            assert axes(role._replace(numbers=numbers)) == found[role.path]


@pytest.mark.slow
def test_stacked_layers_keep_their_axes_in_batches():
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(key):
        return nnx.Conv(4, 8, 3, rngs=nnx.Rngs(key))

    model = stack(jax.random.split(jax.random.key(0), 6))
    table = describe(nnx.state(model, nnx.Param), roles_of(model))
    assert "kernel     (6, 3, 4, 8)  6 x [12, 8]  kernel of Conv  type" in table


class Block(linen.Module):
    """One layer of a scanned stack."""

    @linen.compact
    def __call__(self, x, _):
        x = linen.MultiHeadDotProductAttention(2, name="attention")(x, x)
        return linen.remat(linen.Dense)(4, name="up")(x), None


class Linen(linen.Module):
    """Lifted transformations, a cell, wrapped and own parameters."""

    @linen.compact
    def __call__(self, tokens):
        x = linen.Embed(9, 4)(tokens)
        stack = linen.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = stack(name="layers")(x, None)
        x = linen.RNN(linen.OptimizedLSTMCell(8))(x)
        x = linen.WeightNorm(linen.Dense(8))(x)
        x = linen.ConvTranspose(6, (2,), transpose_kernel=True)(x)
        x = x * self.param("own", linen.initializers.ones, (1, 1, 6))
        return linen.Dense(9, name="lm_head")(linen.Conv(8, (3,), feature_group_count=2)(x))


def test_layers_of_linen():
    model, tokens = Linen(), jnp.zeros((1, 5), jnp.int32)
    found = decided(roles_of(model, tokens))
    expected = {
        "Embed_0/embedding": None,
        "layers/attention/key/kernel": ((1,), (2, 3)),
        "layers/attention/out/kernel": ((1, 2), (3,)),
        "layers/attention/out/bias": None,
        "layers/up/kernel": ((1,), (2,)),
        "OptimizedLSTMCell_0/hf/kernel": ((0,), (1,)),
        "Dense_0/kernel": ((0,), (1,)),
        "ConvTranspose_0/kernel": ((0, 2), (1,)),
        "Conv_0/kernel": None,
        "lm_head/kernel": None,
    }
    assert {path: found[path] for path in expected} == expected
    assert "own" not in found  # the model's own parameter follows the rule by name
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    matrices = by_path({"^own$": None}, otherwise=roles_of(model, tokens))
    muon(1e-3, matrices=matrices).init(params)


def test_patterns_go_before_module_types():
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=RNGS), nnx.Linear(3, 3, rngs=RNGS))
    params = nnx.state(model, nnx.Param)
    numbers = by_path({"layers/1/kernel": None}, otherwise=roles_of(model))
    rules = {role.path: (role.rule, role.numbers is None) for role in roles(params, numbers)}
    assert rules["layers/0/kernel"] == ("type", False)
    assert rules["layers/1/kernel"] == ("given", True)


def test_what_roles_of_does_not_know_is_an_error():
    with pytest.raises(TypeError, match=r"not dict.*by_path"):
        roles_of({"w": jnp.ones((2, 2))})
    with pytest.raises(TypeError, match=r"roles_of\(model, inputs\)"):
        roles_of(linen.Dense(3))


class Module(nnx.Module):
    """A module of any name that holds others."""


def zeros(key, shape, dtype=jnp.float32, out_sharding=None):
    """Initial values that cost nothing."""
    del key, out_sharding
    return np.zeros(shape, dtype)


NO_VALUES = {"rngs": RNGS, "kernel_init": zeros, "bias_init": zeros}
# Names that the frameworks give, or their users, and the layers that have them.
LAYERS = {
    "Dense_0 hidden fc1 q_proj up_proj gate embed_to_hidden feed_forward FeedForward_0": (
        lambda: nnx.Linear(4, 6, **NO_VALUES)
    ),
    "lm_head classifier Head_0 vocab_proj router heads output": (
        lambda: nnx.Linear(4, 6, **NO_VALUES)
    ),
    "Conv_0 conv1 conv_in Conv2D_0": lambda: nnx.Conv(4, 6, (3, 3), **NO_VALUES),
    "Conv_1 conv1d Conv1D_0": lambda: nnx.Conv(4, 6, 3, **NO_VALUES),
    "ConvTranspose_0": lambda: nnx.ConvTranspose(4, 6, (2, 2), **NO_VALUES),
    "Conv_2 depthwise_conv dw_conv": (
        lambda: nnx.Conv(6, 6, (3, 3), feature_group_count=6, **NO_VALUES)
    ),
    "Embed_0 embed_tokens wte tok_embs": lambda: nnx.Embed(9, 4, embedding_init=zeros, rngs=RNGS),
    "LayerNorm_0 norm1 ln_f q_norm": lambda: nnx.LayerNorm(4, rngs=RNGS),
    "RMSNorm_0 rms input_layernorm": lambda: nnx.RMSNorm(4, rngs=RNGS),
    "BatchNorm_0 bn": lambda: nnx.BatchNorm(4, rngs=RNGS),
    "MultiHeadDotProductAttention_0 attn": (
        lambda: nnx.MultiHeadAttention(2, 8, decode=False, **NO_VALUES)
    ),
    "LSTMCell_0 lstm": lambda: nnx.LSTMCell(3, 4, recurrent_kernel_init=zeros, **NO_VALUES),
    "GRUCell_0 gru": lambda: nnx.GRUCell(3, 4, recurrent_kernel_init=zeros, **NO_VALUES),
    "lora": lambda: nnx.LoRA(4, 2, 6, a_initializer=zeros, b_initializer=zeros, rngs=RNGS),
}
NAMED = [(name, layer) for names, layer in LAYERS.items() for name in names.split()]
ANCESTORS = ["PreNormBlock_0", "AdaLN_0", "embedding_net", "PolicyHead_0", "ConvFormer_0"]
ANCESTORS += ["ConvNeXtBlock_0", "SpectralNorm_0", "AddNorm_0", "TimestepEmbedding_0", "layers"]
ANCESTORS += ["encoder", "Head_0", "logits_net"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(ANCESTORS), max_size=3), st.sampled_from(NAMED), st.booleans()
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda case: (tuple(case[0]), case[1][0]),
    )
)
def test_by_name_equals_by_module_type(cases):
    model = Module()
    for ancestors, (name, layer), is_stacked in cases:
        owner = model
        for ancestor in ancestors:
            if not hasattr(owner, ancestor):
                setattr(owner, ancestor, Module())
            owner = getattr(owner, ancestor)
        made = layer()
        if is_stacked and ".norm" in type(made).__module__:  # scale and bias of rank 2
            for own in ("scale", "bias"):
                if getattr(made, own, None) is not None:
                    setattr(made, own, nnx.Param(np.zeros((3, 4), np.float32)))
        if not hasattr(owner, name):  # else an ancestor of that name
            setattr(owner, name, made)
    params = nnx.state(model, nnx.Param)
    by_type = roles(params, roles_of(model))
    for one, other in zip(roles_or_undecided(params), by_type, strict=True):
        if one.rule == "undecided":  # attention: never guessed, and the proposal is right
            assert len(one.shape) == 3
            one = one._replace(numbers=proposal(tuple(one.path.split("/")), one.shape))
        assert axes(one) == axes(other), one.path
