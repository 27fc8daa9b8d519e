"""The rule by name, and the axes that the error proposes if it does not decide."""

import re

import jax
import jax.numpy as jnp
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax.transforms.roles import roles


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
        # Only the parameter's own name and its parent's count.
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
        ("classifier", (4, 9), "names an output head"),
        ("score", (4, 9), "names an output head"),
        ("router", (4, 9), "names a router"),
        ("Head_0/key/kernel", (4, 8), "matrix"),
        ("quantizer/codebooks", (3, 6, 8), "names a table of vectors"),
        # Keras
        ("sequential/separable_conv2d/pointwise_kernel", (1, 1, 4, 5), "convolution"),
        ("sequential/depthwise_conv2d/kernel", (3, 3, 4, 1), "depthwise convolution"),
        ("sequential/layer_normalization/gamma", (6, 8), "names a norm"),
        ("embedding/embeddings", (9, 4), "names an embedding"),
        ("lstm/lstm_cell/recurrent_kernel", (4, 16), "matrix"),
        ("multi_head_attention/query/bias", (2, 8), "names a bias"),
        # Qwix
        ("up/kernel_lora_a", (4, 2), "matrix"),
        ("lm_head/kernel_lora_b", (2, 9), "names an output head"),
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
        ("multi_head_attention/attention_output/kernel", (2, 8, 16), Numbers((0, 1), 2)),
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
    if numbers is None:  # a form to fill in, which does not run as it is
        assert "Numbers(reduction_axis=..., output_axis=...)" in written
        with pytest.raises(ValueError, match="does not fit"):
            roles(params, given)
    else:
        decided = {role.path: role.numbers for role in roles(params, given)}
        assert decided == {path: numbers, "other/array": None}
