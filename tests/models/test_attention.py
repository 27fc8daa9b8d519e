"""Which implementation of attention a program has; what they compute, the decoders' tests show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from models.attention import dot_product_attention

pytestmark = pytest.mark.standard_promotion


def operands(dtype="bfloat16", time=5, heads=4, shared=2, features=8):
    random = np.random.default_rng(0)
    shapes = [(2, time, n, features) for n in (heads, shared, shared)]
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


def loss(*operands, implementation="auto", **options):
    context = dot_product_attention(*operands, implementation=implementation, **options)
    return context.astype(jnp.float32).sum()


@pytest.fixture
def kernel(monkeypatch):
    """JAX on a machine with cuDNN; its kernel returns half of the query."""
    usual = jax.nn.dot_product_attention

    def attend(query, key, value, *, implementation, **options):
        if implementation == "cudnn":
            if query.dtype == jnp.float32:
                raise NotImplementedError("Q must be fp16/bf16")
            return query / 2
        return usual(query, key, value, implementation=implementation, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)


def jaxpr(implementation, *operands, **options):
    run = functools.partial(loss, implementation=implementation, **options)
    return str(jax.make_jaxpr(run)(*operands))


def test_without_cudnn_auto_is_xla():
    arrays = operands()
    if "platform_index" in jaxpr("auto", *arrays):
        pytest.skip("cuDNN is installed")
    assert jaxpr("auto", *arrays) == jaxpr("xla", *arrays)


def test_auto_chooses_when_a_program_is_lowered(kernel):
    arrays = operands()
    gradients = jax.jit(jax.value_and_grad(functools.partial(loss, is_causal=True), (0, 1, 2)))
    traced = gradients.trace(*arrays)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    assert {p: "dot_general" in text for p, text in texts.items()} == {
        "cpu": True,
        "tpu": True,
        "cuda": False,
    }
    plain = functools.partial(loss, implementation="xla", is_causal=True)
    expected = jax.jit(jax.value_and_grad(plain, (0, 1, 2)))(*arrays)
    jax.tree.map(np.testing.assert_array_equal, gradients(*arrays), expected)


def test_auto_is_xla_where_the_kernel_does_not_fit(kernel):
    mask = jnp.ones((1, 1, 5, 5), bool)
    assert "platform_index" in jaxpr("auto", *operands())
    for arrays, options in ((operands("float32"), {}), (operands(), {"mask": mask})):
        assert jaxpr("auto", *arrays, **options) == jaxpr("xla", *arrays, **options)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    arrays = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in operands()]
    assert jaxpr("auto", *arrays) == jaxpr("xla", *arrays)
