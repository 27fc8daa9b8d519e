"""Declarations of functions of matrices are recognized in every form of the function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import (
    DION,
    coupled_newton,
    equivariant,
    gap,
    newton_schulz,
    orthogonalize,
    polar,
    power,
    rms,
    spectral_norm,
    threshold_gate,
)
from mimuon_jax.linalg.equivariance import along_of, is_equivariant

TREE = {
    name: jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    for name, shape in {"up": (4, 6), "down": (6, 4), "mix": (4, 5), "out": (5, 3)}.items()
}
SCHEDULED = functools.partial(newton_schulz, schedule=DION)


def products(tx):
    """How many matrix products the update of `TREE` lowers to."""
    return jax.jit(tx.update).lower(TREE, tx.init(TREE)).as_text().count("dot_general")


@pytest.mark.parametrize(
    "form",
    [
        lambda: orthogonalize(SCHEDULED),
        lambda: orthogonalize(jax.jit(SCHEDULED)),
        lambda: orthogonalize(
            functools.partial(jax.jit(newton_schulz, static_argnames="schedule"), schedule=DION)
        ),
        lambda: orthogonalize(lambda x: newton_schulz(x, schedule=DION), equivariant=True),
        lambda: orthogonalize(equivariant(lambda x: newton_schulz(x, schedule=DION))),
    ],
    ids=["partial", "jit", "partial of jit", "argument", "decorator"],
)
def test_every_form_of_an_orthogonalizer_lowers_to_as_many_products(form):
    plain = products(orthogonalize("dion"))
    assert plain == 3 * len(DION.triples)  # one batch for all shapes
    assert products(form()) == plain


@pytest.mark.slow
def test_a_function_without_the_declaration_gets_every_shape_unchanged():
    undeclared = orthogonalize(lambda x: newton_schulz(x, schedule=DION))
    declined = orthogonalize(SCHEDULED, equivariant=False)
    assert products(undeclared) == products(declined) == 4 * 3 * len(DION.triples)
    expected = orthogonalize("dion").update(TREE, optax.EmptyState())[0]
    # Each step amplifies the rounding of the small singular values. Observed: 1.7e-5 (JAX 0.12).
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=5e-5),
        undeclared.update(TREE, optax.EmptyState())[0],
        expected,
    )


@pytest.mark.parametrize(
    ("function", "declared"),
    [
        (functools.partial(newton_schulz, dtype=jnp.float16), True),
        (functools.partial(power, p=0.5, method="svd"), True),
        (functools.partial(power, p=0.5, method=functools.partial(coupled_newton)), True),
        (functools.partial(power, p=0.5, method=lambda x, p: x), False),
        (functools.partial(map, newton_schulz), False),
        (functools.partial(lambda x: x), False),
        (polar, True),
        (gap, True),
        (lambda x: x, False),
    ],
)
def test_a_partial_is_what_its_parts_are(function, declared):
    assert is_equivariant(function) is declared


def test_a_measure_is_recognized_likewise():
    def batches(measure):
        calls = []

        def spy(x):
            calls.append(x.shape)
            return measure(x)

        declared = equivariant(spy) if is_equivariant(measure) else spy
        tx = threshold_gate(orthogonalize("svd"), threshold=1.0, measure=declared)
        jax.eval_shape(tx.update, TREE, jax.eval_shape(tx.init, TREE))
        return len(calls)

    assert batches(jax.jit(spectral_norm)) == batches(functools.partial(spectral_norm)) == 1
    assert batches(lambda x: spectral_norm(x)) == 4


def test_entries_are_summed_without_moving():
    assert along_of(jax.jit(rms)) is along_of(rms) is not None
    assert along_of(gap) is None
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 5, 4)), jnp.float32)
    moved = jnp.transpose(x, (0, 3, 1, 2)).reshape(3, 4, 10)  # [batch, reduction, output]
    in_place = along_of(rms)
    assert in_place is not None
    np.testing.assert_allclose(in_place(x, (3,), (1, 2)), rms(moved), rtol=1e-6)
