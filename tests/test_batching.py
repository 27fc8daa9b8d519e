"""Many matrices through one function: plans from shapes, and results without a mesh."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

from mimuon_jax.engine.axes import from_matrices, to_matrices
from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.engine.plan import Layout, Shards, plan, whole_shape
from mimuon_jax.linalg.newton_schulz import newton_schulz

N = MuonDimensionNumbers
SHAPES = [
    ((6, 10), N(0, 1)),
    ((10, 6), N(0, 1)),
    ((6, 6), N(0, 1)),
    ((5, 9), N(0, 1)),
    ((3, 6, 10), N(1, 2)),  # scanned layers
    ((2, 2, 3, 4), N((0, 1, 2), 3)),  # a convolution, 12 x 4
    ((6, 3, 5), N(0, 2)),  # the batch axis between the two others
    ((2, 3, 2, 5), N((1, 2), -1)),
]
NUMBERS = [numbers for _, numbers in SHAPES]


def arrays(dtype=jnp.float32):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape, _ in SHAPES]


def one_by_one(function, xs):
    """The definition: every array on its own."""
    return [
        from_matrices(function(to_matrices(x, numbers)), x.shape, numbers)
        for x, numbers in zip(xs, NUMBERS, strict=True)
    ]


def weighted(x):
    """Multiplies every element by its own factor, so that it does not commute with anything."""
    _, m, n = x.shape
    return x * jnp.arange(m * n, dtype=x.dtype).reshape(1, m, n)


@pytest.mark.parametrize("equivariant", [False, True])
def test_an_identity_makes_an_exact_round_trip(equivariant):
    results = map_matrices(lambda x: x, arrays(), NUMBERS, equivariant=equivariant)
    chex.assert_trees_all_equal(results, arrays())


def test_newton_schulz_sees_neither_transposition_nor_padding():
    xs, numbers = arrays()[:4], NUMBERS[:4]  # all four in one batch of 6 x 10
    results = jax.jit(lambda: map_matrices(newton_schulz, xs, numbers, equivariant=True))()
    for x, result in zip(xs, results, strict=True):
        # the sums of a larger matrix are rounded in another order: 1.3e-6 observed
        chex.assert_trees_all_close(result, newton_schulz(x), atol=5e-6, rtol=0)


def test_a_function_of_the_users_sees_matrices_as_they_are():
    seen = []

    def function(x):
        seen.append(x.shape)
        return weighted(x)

    results = map_matrices(function, arrays(), NUMBERS)
    assert sorted(seen) == [
        (1, 5, 9), (1, 6, 6), (1, 10, 6), (1, 12, 4), (4, 6, 10), (5, 6, 5)
    ]  # fmt: skip
    chex.assert_trees_all_equal(results, one_by_one(weighted, arrays()))


def test_an_equivariant_function_sees_few_batches_of_wide_matrices():
    seen = []

    def function(x):
        seen.append(x.shape)
        return x

    map_matrices(function, arrays(), NUMBERS, equivariant=True)
    # So small that padding is cheaper than more batches, except that 4 x 12 fits no other shape.
    assert sorted(seen) == [(1, 4, 12), (12, 6, 10)]


def test_arrays_keep_their_dtypes_and_are_computed_in_them():
    xs = [x.astype(t) for x, t in zip(arrays(), [jnp.float32, jnp.bfloat16] * 4, strict=True)]
    seen = set()

    def function(x):
        seen.add(str(x.dtype))
        return x.astype(jnp.float32)  # a result of another dtype is cast

    results = map_matrices(function, xs, NUMBERS, equivariant=True)
    chex.assert_trees_all_equal(results, xs)
    assert [y.dtype for y in results] == [x.dtype for x in xs]
    assert seen == {"float32", "bfloat16"}


def test_a_function_without_a_hash_will_do():
    @dataclasses.dataclass  # compared by value, so without a hash
    class Scale:
        factor: float

        def __call__(self, x):
            return self.factor * x

    (result,) = map_matrices(Scale(2.0), arrays()[:1], NUMBERS[:1])
    chex.assert_trees_all_equal(result, 2 * arrays()[0])


def test_no_arrays_give_no_results():
    assert map_matrices(weighted, [], []) == []


def test_a_batch_of_inactive_matrices_is_not_computed():
    calls = []

    def function(x):
        jax.debug.callback(lambda: calls.append(x.shape))
        return -x

    def run(active):
        flags = [jnp.asarray(active), None, jnp.full((3,), not active)]
        results = jax.jit(lambda: map_matrices(function, xs, numbers, active=flags))()
        jax.effects_barrier()
        return results

    xs, numbers = [arrays()[i] for i in (0, 2, 6)], [NUMBERS[i] for i in (0, 2, 6)]
    first, _, others = run(True)
    assert sorted(calls) == [(1, 6, 6), (1, 6, 10)]
    chex.assert_trees_all_equal(first, -xs[0])
    chex.assert_tree_all_finite(others)
    calls.clear()
    first, _, others = run(False)
    assert sorted(calls) == [(1, 6, 6), (3, 6, 5)]
    chex.assert_trees_all_equal(others, -xs[2])
    chex.assert_tree_all_finite(first)


def test_a_batch_is_computed_for_a_single_active_matrix():
    layers, numbers = arrays()[4], NUMBERS[4]
    active = jnp.asarray([False, True, False])
    (result,) = map_matrices(lambda x: -x, [layers], [numbers], active=[active])
    chex.assert_trees_all_equal(result[1], -layers[1])


def test_it_can_be_mapped_and_differentiated():
    xs = [jnp.stack([x, 2 * x]) for x in arrays()]
    mapped = jax.jit(jax.vmap(lambda *xs: map_matrices(weighted, xs, NUMBERS)))(*xs)
    chex.assert_trees_all_equal([y[1] for y in mapped], one_by_one(weighted, [x[1] for x in xs]))

    @jax.jit
    @jax.grad
    def gradient(xs):
        return sum(y.sum() for y in map_matrices(weighted, xs, NUMBERS))

    chex.assert_trees_all_equal(
        gradient(arrays()), one_by_one(weighted, [jnp.ones_like(x) for x in arrays()])
    )


def layout(m, n, matrices, axes=((), ()), replicated=("data",), dtype="float32"):
    return Layout(Shards((m, n), axes, 1), matrices, replicated, dtype)


def planned(*layouts, devices=1, equivariant=True, max_bytes=2**28):
    return plan(layouts, (("data", devices),), equivariant=equivariant, max_bytes=max_bytes)


def sketch(exchanges):
    """Shape, slots and members of every batch."""
    return [(b.shape, b.slots, len(b.members)) for e in exchanges for b in e.batches]


def test_transposes_share_a_batch():
    exchanges = planned(layout(1024, 3072, 3), layout(3072, 1024, 2))
    assert sketch(exchanges) == [((1024, 3072), 5, 5)]
    members = exchanges[0].batches[0].members
    assert [member.transposed for member in members] == [False] * 3 + [True] * 2
    apart = planned(layout(1024, 3072, 3), layout(3072, 1024, 2), equivariant=False)
    assert sorted(sketch(apart)) == [((1024, 3072), 3, 3), ((3072, 1024), 2, 2)]


def test_a_small_shape_joins_a_larger_one_only_where_the_padding_is_cheaper_than_a_batch():
    assert sketch(planned(layout(96, 128, 2), layout(96, 120, 2))) == [((96, 128), 4, 4)]
    assert len(sketch(planned(layout(960, 1280, 2), layout(960, 1200, 2)))) == 2
    assert len(sketch(planned(layout(96, 128, 2), layout(128, 90, 9)))) == 2  # neither holds it


def test_free_slots_take_the_remainder_of_a_smaller_shape():
    kinds = layout(1024, 3072, 5), layout(1024, 2048, 19)
    assert sketch(planned(*kinds, devices=8)) == [((1024, 3072), 1, 8), ((1024, 2048), 2, 16)]
    kinds = layout(1024, 3072, 6), layout(1024, 2048, 19)
    assert sketch(planned(*kinds, devices=8)) == [((1024, 3072), 1, 6), ((1024, 2048), 3, 19)]


def test_what_travels_differently_is_an_exchange_of_its_own():
    columns = ((), ("data",))
    exchanges = planned(
        layout(8, 4, 2, columns, ()),
        layout(8, 4, 2, columns, ()),
        layout(8, 8, 2),
        layout(8, 4, 2, columns, (), "bfloat16"),
        devices=2,
    )
    assert [(e.sharded, e.replicated) for e in exchanges] == [
        (("data",), ()), ((), ("data",)), (("data",), ())
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "width"), [((256, 384), 128), ((512, 512), 512), ((96, 128), None)]
)
def test_shards_travel_in_rows_if_all_have_columns_of_whole_vectors(columns, width):
    rows = (("data",), ())
    layouts = [layout(8, n, 2, rows, ()) for n in columns]
    assert [e.width for e in planned(*layouts, devices=2)] == [width]


def decoder(layers, hidden, inner, queries, keys, experts=0, devices=8):
    """The matrices of a decoder on FSDP: rows sharded, one leaf per matrix or stack of experts."""
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    every = [(1, shape) for shape in shapes]
    every += [
        (experts or 1, shape) for shape in [(hidden, inner), (hidden, inner), (inner, hidden)]
    ]
    sharded = (("data",), ())
    return [
        layout(m // devices, n, count, sharded, ())
        for count, (m, n) in every
        for _ in range(layers)
    ]


SMALL = (28, 1024, 3072, 2048, 1024)
LARGE = (36, 4096, 12288, 4096, 1024)
EXPERTS = (48, 2048, 768, 4096, 512, 128)


@pytest.mark.parametrize(
    ("sizes", "devices", "flops", "entries", "exchanges"),
    [
        (SMALL, 8, 1.03, 1.03, 1),
        (LARGE, 8, 1.03, 1.03, 8),
        (EXPERTS, 8, 1.01, 1.01, 8),
        (EXPERTS, 64, 1.03, 1.01, 8),
        # One matrix of attention per device is more than an equal share; experts fill no such slot.
        (EXPERTS, 256, 1.12, 1.05, 2),
        # About four matrices per device, and three: a share of a matrix cannot be given away.
        (LARGE, 64, 1.12, 1.13, 3),
        (SMALL, 64, 1.36, 1.38, 1),
        # Less than one.
        (SMALL, 256, 1.74, 1.83, 1),
    ],
)
def test_the_work_is_divided_evenly_in_few_exchanges(sizes, devices, flops, entries, exchanges):
    layouts = decoder(*sizes, devices=devices)
    planned = plan(tuple(layouts), (("data", devices),), equivariant=True)
    batches = [batch for exchange in planned for batch in exchange.batches]
    shapes = [(whole_shape(x.shards, {"data": devices}), x.matrices) for x in layouts]
    cost = lambda m, n: 4 * min(m, n) ** 2 * max(m, n) + 2 * min(m, n) ** 3  # noqa: E731
    share = sum(count * cost(*shape) for shape, count in shapes) / devices
    assert sum(b.slots * cost(*b.shape) for b in batches) <= flops * share
    share = sum(count * math.prod(shape) for shape, count in shapes) / devices
    assert sum(b.slots * math.prod(b.shape) for b in batches) <= entries * share
    assert len(planned) <= exchanges


@pytest.mark.parametrize(
    ("max_bytes", "slots"), [(2**30, [10]), (4 * 8 * 8 * 3, [3, 3, 3, 1]), (1, [1] * 10)]
)
def test_max_bytes_divides_the_work_by_slots(max_bytes, slots):
    exchanges = planned(layout(8, 8, 80), devices=8, max_bytes=max_bytes)
    assert [[b.slots for b in e.batches] for e in exchanges] == [[k] for k in slots]


@given(
    kinds=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=8
    ),
    scale=st.sampled_from([1, 64, 512]),
    devices=st.sampled_from([1, 2, 8]),
    equivariant=st.booleans(),
    max_bytes=st.sampled_from([1, 2**16, 2**28]),
)
def test_a_plan_holds_every_matrix_once_and_costs_no_more_than_one_batch_per_shape(
    kinds, scale, devices, equivariant, max_bytes
):
    layouts = [layout(m * scale, n * scale, k) for m, n, k in kinds]
    batches = [
        batch
        for exchange in planned(
            *layouts, devices=devices, equivariant=equivariant, max_bytes=max_bytes
        )
        for batch in exchange.batches
    ]
    members = [(member.array, member.matrix) for batch in batches for member in batch.members]
    assert sorted(members) == [(i, j) for i, (_, _, k) in enumerate(kinds) for j in range(k)]
    for batch in batches:
        assert batch.slots == math.ceil(len(batch.members) / devices)
        assert 4 * batch.slots * math.prod(batch.shape) <= max_bytes or batch.slots == 1
        for member in batch.members:
            shape = layouts[member.array].shards.shape
            assert member.transposed == (equivariant and shape[0] > shape[1])
            m, n = shape[::-1] if member.transposed else shape
            fits = m <= batch.shape[0] and n <= batch.shape[1]
            assert fits if equivariant else (m, n) == batch.shape
    # Padding may cost up to 3e7 FLOPs for every batch that it saves.
    apart: dict = {}
    for m, n, k in kinds:
        shape = (m, n) if not equivariant else (min(m, n), max(m, n))
        apart[shape] = apart.get(shape, 0) + k
    limit = sum(math.ceil(k / devices) * flops(m * scale, n * scale) for (m, n), k in apart.items())
    cost = sum(batch.slots * flops(*batch.shape) for batch in batches)
    slack = 3e7 * len(apart) if equivariant else 0
    assert cost <= limit + slack


def flops(m, n):
    m, n = min(m, n), max(m, n)
    return 5.0 * (4 * m * m * n + 2 * m**3)
