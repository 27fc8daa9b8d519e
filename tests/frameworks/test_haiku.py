"""Haiku's parameters: keys with slashes, weights named `w`, transposed convolutions."""

import jax
import jax.numpy as jnp
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax.transforms.roles import roles

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_names_of_haiku():
    hk = pytest.importorskip("haiku")

    def network(x):
        x = hk.LayerNorm(-1, True, True)(hk.Conv2D(4, 3)(x))
        x = hk.DepthwiseConv2D(1, 3)(hk.Conv2DTranspose(6, 3)(x))
        x = hk.nets.MLP([5, 6])(x.mean((1, 2)))
        x, _ = hk.LSTM(5)(x, hk.LSTM(5).initial_state(1))
        return hk.Embed(9, 6)(jnp.zeros(1, jnp.int32)), hk.GRU(4)(x, jnp.zeros((1, 4)))

    with jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(
            hk.transform(network).init, jax.random.key(0), jnp.ones((1, 8, 8, 3))
        )
    found = {role.path: role.numbers for role in roles(params)}
    expected = {
        "conv2_d/w": Numbers((0, 1, 2), 3),
        "conv2_d_transpose/w": Numbers((0, 1, 3), 2),  # [height, width, output, input]
        "depthwise_conv2_d/w": None,
        "embed/embeddings": None,
        "layer_norm/scale": None,
        "gru/w_h": Numbers(0, 1),
        "lstm/linear/w": Numbers(0, 1),
        "mlp/~/linear_0/w": Numbers(0, 1),
        "mlp/~/linear_0/b": None,
    }
    assert {path: found[path] for path in expected} == expected
