"""The residual classifier: sizes, statistics, and the axes of its matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimuon_jax.engine.axes import matrix_shape
from mimuon_jax.transforms.roles import roles
from models.classifier import ResNet, ResNetConfig, matrix_dimension_numbers, resnet18, small

TINY = ResNetConfig(classes=3, channels=2, width=4, blocks=(1, 1))


def parameters(config: ResNetConfig) -> dict:
    """Shapes of the parameters."""
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_the_sizes_are_the_published_ones():
    # 11,173,962 is the count of the usual CIFAR ResNet-18 in every framework.
    for config, count in ((resnet18(), 11_173_962), (small(), 19_706)):
        assert sum(x.size for x in jax.tree.leaves(parameters(config))) == count


def test_every_kernel_but_the_heads_is_one_matrix():
    params = parameters(TINY)
    shapes = {
        role.path: role.numbers and matrix_shape(role.shape, role.numbers)
        for role in roles(params, matrix_dimension_numbers)
    }
    assert {path: shape for path, shape in shapes.items() if shape} == {
        "stem_conv/kernel": (18, 4),
        "blocks/0/conv1/kernel": (36, 4),
        "blocks/0/conv2/kernel": (36, 4),
        "blocks/1/conv1/kernel": (36, 8),
        "blocks/1/conv2/kernel": (72, 8),
        "blocks/1/shortcut_conv/kernel": (4, 8),
    }


@pytest.mark.slow
def test_the_two_kinds_of_statistics():
    model = ResNet(dataclasses.replace(TINY, blocks=(1,)), rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 2)) + 3.0
    first = model(images, training=False)
    np.testing.assert_array_equal(first, model(images, training=False))  # nothing moved
    trained = model(images, training=True)
    np.testing.assert_allclose(model.stem_norm.mean[...], 0.1 * _stem(model, images), rtol=1e-4)
    assert float(jnp.abs(first - trained).max()) > 0.1
    assert float(jnp.abs(first - model(images, training=False)).max()) > 1e-3


def _stem(model: ResNet, images: jax.Array) -> jax.Array:
    return model.stem_conv(images).mean((0, 1, 2))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"blocks": ()}, {"blocks": (1, 0)}])
def test_an_architecture_that_cannot_be_built_is_refused(wrong: dict):
    with pytest.raises(ValueError, match="must consist of integers of at least 1"):
        ResNetConfig(**wrong)
