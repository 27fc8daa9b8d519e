"""Results are the same on any mesh, however arrays are sharded and however this is known."""

import functools
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

from mimuon_jax.engine import batching, plan
from mimuon_jax.engine.assembly import from_block, to_block
from mimuon_jax.engine.axes import from_matrices, to_matrices
from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.engine.sharding import of_leaves
from mimuon_jax.linalg.newton_schulz import newton_schulz

N = MuonDimensionNumbers
MESHES = {1: (1, 1), 2: (2, 1), 4: (2, 2), 8: (4, 2)}  # devices: sizes of the axes "x" and "y"
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit

# Every way to shard an array over two axes, in one tree: shape, numbers, spec.
TREE = [
    ((16, 24), N(0, 1), P("x")),  # FSDP; replicated along y
    ((16, 24), N(0, 1), P("x")),
    ((24, 16), N(0, 1), P("x")),  # the transpose, sharded along the other side
    ((16, 24), N(0, 1), P("x", "y")),  # two-dimensional
    ((24, 16), N(0, 1), P("y", "x")),
    ((16, 24), N(0, 1), P(("x", "y"), None)),  # both axes on one dimension, in both orders
    ((16, 24), N(0, 1), P(None, ("y", "x"))),
    ((7, 9), N(0, 1), P()),  # replicated; sizes that divide nothing
    ((5, 8, 12), N(1, 2), P(None, "x", "y")),  # scanned layers, not a multiple of the devices
    ((8, 16, 24), N(1, 2), P("x", None, "y")),  # layers over x, matrices over y
    ((8, 10, 6), N(1, 2), P(("x", "y"))),  # nothing to exchange
    ((3, 3, 8, 16), N((0, 1, 2), 3), P(None, None, "x", "y")),  # a convolution
    (
        (8, 4, 16, 5),
        N((0, 2), 3),
        P("x", "y", None, None),
    ),  # a sharded batch axis between the others
]
SHAPES, NUMBERS, SPECS = zip(*TREE, strict=True)
SOME = [0, 4, 7, 9, 11]  # for tests in which a part of the tree is enough


def arrays(shapes=SHAPES):
    random = np.random.default_rng(1)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def some(values):
    return [values[i] for i in SOME]


def cubic(x):
    """One cubic step: a misplaced element changes its row and its column."""
    x = x / (1e-30 + jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True)))
    return 1.5 * x - 0.5 * jnp.matmul(jnp.matmul(x, x.mT, precision="highest"), x)


def reference(function, xs, numbers):
    """The definition: every array on its own, on one device."""
    return [
        from_matrices(function(to_matrices(x, n)), x.shape, n)
        for x, n in zip(xs, numbers, strict=True)
    ]


@pytest.fixture(scope="module")
def expected():
    return jax.jit(lambda xs: reference(cubic, xs, NUMBERS))(arrays())


def make_mesh(devices, kinds=EXPLICIT, sizes=None):
    sizes = sizes or MESHES[devices]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,) * 2
    return jax.make_mesh(sizes, ("x", "y"), axis_types=kinds, devices=jax.devices()[:devices])


def place(xs, mesh, specs=SPECS):
    return [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(xs, specs, strict=True)]


def assert_values(results, expected, atol=5e-6):
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(np.asarray(result), np.asarray(wanted), atol=atol, rtol=0)


def assert_same(results, expected, placed, atol=5e-6):
    for result, x in zip(results, placed, strict=True):
        assert result.sharding.is_equivalent_to(x.sharding, x.ndim), (result.sharding, x.sharding)
    assert_values(results, expected, atol)


def collectives(function, *args):
    """Kinds of the collectives of a compiled function, in order."""
    return kinds_of_collectives(jax.jit(function).lower(*args).compile())


def kinds_of_collectives(compiled):
    """The same of what is compiled already."""
    text = compiled.as_text() or ""
    kinds = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
    return sorted(k for line in text.splitlines() for k in kinds if f" {k}(" in line)


ENTRIES = {
    "explicit": (EXPLICIT, lambda mesh: None),
    "auto": (AUTO, lambda mesh: None),
    "named shardings": (AUTO, lambda mesh: [NamedSharding(mesh, s) for s in SPECS]),
    "partition specs": (AUTO, lambda mesh: SPECS),
}
FAST = {(8, "explicit"), (8, "auto")}


@pytest.mark.parametrize(
    ("devices", "entry"),
    [
        pytest.param(devices, entry, marks=[pytest.mark.slow] * ((devices, entry) not in FAST))
        for devices in MESHES
        for entry in ENTRIES
    ],
)
def test_every_layout_gives_the_unsharded_result_and_keeps_its_sharding(devices, entry, expected):
    kind, shardings = ENTRIES[entry]
    mesh = make_mesh(devices, kind)
    placed = place(arrays(), mesh)

    @jax.jit
    def run(xs):
        return map_matrices(cubic, xs, NUMBERS, equivariant=True, shardings=shardings(mesh))

    if entry == "auto":  # XLA may choose one sharding for arrays of a shape that are sharded apart
        assert_values(run(placed), expected)
    else:
        assert_same(run(placed), expected, placed)


def test_a_block_of_rows_holds_the_first_columns_and_below_them_the_next():
    x = jnp.arange(12).reshape(1, 2, 6)
    block = to_block(x, (7, 2))
    rows = [[0, 1], [6, 7], [2, 3], [8, 9], [4, 5], [10, 11], [0, 0]]
    np.testing.assert_array_equal(block, [rows])
    np.testing.assert_array_equal(from_block(block, (2, 6), 2), x)


@pytest.mark.slow
def test_shards_that_travel_in_rows_give_the_same(expected, monkeypatch):
    """The shards in the other tests are so narrow that they are sent flattened."""
    monkeypatch.setattr(plan, "_LANES", 1)
    plan.plan.cache_clear()  # plans assume vectors of 128
    placed = place(arrays(), make_mesh(8, EXPLICIT))
    run = jax.jit(lambda xs: map_matrices(cubic, xs, NUMBERS, equivariant=True))
    results = run(placed)
    plan.plan.cache_clear()
    assert_same(results, expected, placed)


@pytest.mark.parametrize(
    "kinds", [(EXPLICIT, AUTO), pytest.param((AUTO, EXPLICIT), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("given", [False, True])
def test_a_mesh_of_both_kinds_of_axes(kinds, given, expected):
    placed = some(place(arrays(), make_mesh(8, kinds)))
    shardings = some(SPECS) if given else None
    run = jax.jit(lambda xs: map_matrices(cubic, xs, some(NUMBERS), shardings=shardings))
    assert_values(run(placed), some(expected))


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_a_mesh_in_context_changes_nothing(kind, expected):
    mesh = make_mesh(8, kind)
    placed = some(place(arrays(), mesh))
    with jax.set_mesh(mesh):
        results = jax.jit(lambda xs: map_matrices(cubic, xs, some(NUMBERS)))(placed)
    if kind == AUTO:  # as above
        assert_values(results, some(expected))
    else:
        assert_same(results, some(expected), placed)


@pytest.mark.parametrize(
    "spec",
    [
        P("x"),
        P("y", "x"),
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (P(None, "x"), P("x", "y"), P("y"), P())
        ),
    ],
)
def test_results_are_sharded_alike_where_only_xla_knows_how(spec):
    placed = place(arrays([(16, 24), (16, 24), (8, 32)]), make_mesh(8, AUTO), [spec] * 3)
    results = jax.jit(lambda xs: map_matrices(cubic, xs, [N(0, 1)] * 3))(placed)
    for result, x in zip(results, placed, strict=True):
        assert result.sharding.is_equivalent_to(x.sharding, 2), (result.sharding, x.sharding)


@pytest.mark.parametrize("kind", [pytest.param(AUTO, marks=pytest.mark.slow), EXPLICIT])
def test_outside_jit_the_arrays_tell_their_sharding(kind, expected):
    placed = place(arrays(), make_mesh(8, kind))[3:4]
    assert_same(map_matrices(cubic, placed, NUMBERS[3:4]), expected[3:4], placed)


@pytest.mark.parametrize(
    ("devices", "kind"), [pytest.param(2, AUTO, marks=pytest.mark.slow), (8, EXPLICIT)]
)
def test_newton_schulz_of_fewer_matrices_than_devices(devices, kind):
    shapes = [(16, 24), (24, 16), (16, 16)]
    specs = [P("x", "y"), P("y", "x"), P("x", "y")]
    xs, numbers = arrays(shapes), [N(0, 1)] * 3
    placed = place(xs, make_mesh(devices, kind), specs)
    run = jax.jit(lambda xs: map_matrices(newton_schulz, xs, numbers, equivariant=True))
    assert_same(run(placed), [newton_schulz(x) for x in xs], placed)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_inside_loops_and_branches(kind):
    """As under `optax.MultiSteps` and in a scan over steps."""
    mesh = make_mesh(8, kind)
    xs = arrays([(16, 24), (24, 16)])
    placed = place(xs, mesh, [P("x", "y"), P("y")])

    def step(xs, turn):
        update = lambda xs: map_matrices(cubic, xs, [N(0, 1)] * 2, equivariant=True)  # noqa: E731
        return jax.lax.cond(turn == 1, update, lambda xs: xs, xs), None

    results, _ = jax.jit(lambda xs: jax.lax.scan(step, xs, jnp.arange(3)))(placed)
    assert_same(results, [cubic(x[None])[0] for x in xs], placed)


def test_wrong_shardings_cost_time_but_never_correctness(expected):
    placed = some(place(arrays(), make_mesh(8, AUTO)))
    wrong = [None, P("y"), P("x"), P(None, ("y", "x")), P(None, None, "y")]
    run = jax.jit(lambda xs: map_matrices(cubic, xs, some(NUMBERS), shardings=wrong))
    assert_values(run(placed), some(expected))


def test_axes_that_do_not_divide_an_array_are_left_out():
    mesh = make_mesh(8, AUTO, (8, 1))
    (x,) = arrays([(12, 20)])
    run = jax.jit(lambda x: map_matrices(cubic, [x], [N(0, 1)], shardings=[P("x")])[0])
    np.testing.assert_allclose(
        run(jax.device_put(x, NamedSharding(mesh, P()))), cubic(x), atol=5e-6, rtol=0
    )


EXCHANGES = [
    ((8, 1), P("x"), ["all-to-all"] * 2),
    ((4, 2), P("x", "y"), ["all-to-all"] * 2),
    ((4, 2), P(), ["all-gather"]),
    ((4, 2), P("x"), ["all-gather", *["all-to-all"] * 2]),
]
FIVE = [(16, 24), (16, 24), (24, 16), (16, 32), (16, 16)]  # of four shapes


def five(xs):
    return map_matrices(cubic, xs, [N(0, 1)] * 5, equivariant=True)


@pytest.mark.parametrize(("sizes", "spec", "wanted"), EXCHANGES)
def test_one_exchange_in_and_one_out(sizes, spec, wanted):
    assert (
        collectives(five, place(arrays(FIVE), make_mesh(8, EXPLICIT, sizes), [spec] * 5)) == wanted
    )


@pytest.mark.parametrize(
    ("sizes", "spec", "wanted"),
    [EXCHANGES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in EXCHANGES[1:])],
)
def test_one_exchange_per_shape_and_mesh_axis_where_only_xla_knows_the_layout(sizes, spec, wanted):
    axes = 1 if spec == P("x") else 2  # over which the matrices are sharded, or whole
    placed = place(arrays(FIVE), make_mesh(8, AUTO, sizes), [spec] * 5)
    assert collectives(five, placed) == sorted(4 * axes * wanted)
    xs = arrays(FIVE)
    assert_same(jax.jit(five)(placed), reference(cubic, xs, [N(0, 1)] * 5), placed)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_matrices_that_are_whole_do_not_travel(kind):
    mesh = make_mesh(8, kind, (8, 1))
    placed = place(arrays([(8, 16, 24), (8, 24, 16)]), mesh, [P(("x", "y"))] * 2)
    run = lambda xs: map_matrices(cubic, xs, [N(1, 2)] * 2, equivariant=True)  # noqa: E731
    assert collectives(run, placed) == []


def test_a_large_exchange_is_divided_into_several(monkeypatch):
    one_matrix_per_device = functools.partial(batching.plan, max_bytes=4 * 16 * 32)
    monkeypatch.setattr(batching, "plan", one_matrix_per_device)
    mesh = make_mesh(8, EXPLICIT, (8, 1))
    xs = arrays([(24, 16, 32)])
    placed = place(xs, mesh, [P(None, "x")])
    run = lambda xs: map_matrices(cubic, xs, [N(1, 2)])  # noqa: E731
    assert collectives(run, placed) == ["all-to-all"] * 6
    assert_same(jax.jit(run)(placed), reference(cubic, xs, [N(1, 2)]), placed)


def test_sixteen_bits_travel_as_sixteen_bits():
    mesh = make_mesh(8, EXPLICIT, (8, 1))
    xs = [x.astype(jnp.bfloat16) for x in arrays([(16, 24)] * 3)]
    placed = place(xs, mesh, [P("x")] * 3)
    run = jax.jit(lambda xs: map_matrices(cubic, xs, [N(0, 1)] * 3))
    text = run.lower(placed).compile().as_text() or ""
    sent = [line for line in text.splitlines() if " all-to-all(" in line]
    assert len(sent) == 2
    assert all("u16[" in line and "f32[" not in line.split(" all-to-all(")[0] for line in sent)
    alone = map_matrices(cubic, xs, [N(0, 1)] * 3)
    assert_same(run(placed), alone, placed, atol=2e-3)  # one bit of bfloat16 between 0.25 and 0.5


@pytest.mark.parametrize("kind", [AUTO, pytest.param(EXPLICIT, marks=pytest.mark.slow)])
def test_active_matrices_on_a_mesh_get_their_results(kind, expected):
    placed, numbers = some(place(arrays(), make_mesh(8, kind))), some(NUMBERS)
    active = [jnp.ones((), bool), jnp.zeros((), bool), None, jnp.arange(8) % 3 == 0, None]
    run = jax.jit(lambda xs, active: map_matrices(cubic, xs, numbers, active=active))
    results = run(placed, active)
    chex.assert_tree_all_finite(results)
    every = [np.array(y) for y in results]
    every[1] = np.asarray(expected[SOME[1]])  # the other results are unspecified
    every[3][1::3] = every[3][2::3] = 0
    wanted = [np.array(y) for y in some(expected)]
    wanted[3][1::3] = wanted[3][2::3] = 0
    assert_values(every, wanted)


def test_a_device_without_active_matrices_computes_nothing():
    calls = []

    def function(x):
        jax.debug.callback(lambda: calls.append(x.shape))
        return -x

    mesh = make_mesh(8, EXPLICIT, (8, 1))
    (placed,) = place(arrays([(8, 4, 6)]), mesh, [P("x")])
    active = jnp.arange(8) < 3
    run = jax.jit(lambda x, a: map_matrices(function, [x], [N(1, 2)], active=[a])[0])
    result = run(placed, active)
    jax.effects_barrier()
    assert calls == [(1, 4, 6)] * 3  # of eight devices
    np.testing.assert_array_equal(np.asarray(result)[:3], -np.asarray(placed)[:3])


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_inside_shard_map_arrays_are_whole_unless_shardings_are_given(kind):
    mesh = make_mesh(8, kind, (8, 1))
    (x,) = arrays([(16, 24)])
    (placed,) = place([x], mesh, [P("x")])

    def run(shardings):
        return jax.jit(
            jax.shard_map(
                lambda x: map_matrices(cubic, [x], [N(0, 1)], shardings=shardings)[0],
                mesh=mesh,
                in_specs=P("x"),
                out_specs=P("x"),
            )
        )(placed)

    parts = jnp.concatenate([cubic(part[None])[0] for part in jnp.split(x, 8)])
    np.testing.assert_allclose(run(None), parts, atol=5e-6, rtol=0)
    np.testing.assert_allclose(run([P("x")]), cubic(x[None])[0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_inside_shard_map_over_one_axis_the_other_is_still_used(kind):
    mesh = make_mesh(8, kind, (2, 4))
    (x,) = arrays([(2, 16, 24)])
    (placed,) = place([x], mesh, [P("x", "y")])
    run = jax.shard_map(
        lambda x: map_matrices(cubic, [x], [N(1, 2)])[0],
        mesh=mesh,
        axis_names={"x"},
        in_specs=P("x"),
        out_specs=P("x"),
    )
    np.testing.assert_allclose(jax.jit(run)(placed), cubic(x), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (AUTO, False),
        pytest.param(AUTO, True, marks=pytest.mark.slow),
        pytest.param(EXPLICIT, False, marks=pytest.mark.slow),
    ],
)
def test_results_can_be_mapped_and_differentiated(kind, given):
    mesh = make_mesh(8, kind, (8, 1))
    (x,) = arrays([(2, 16, 24)])
    (placed,) = place([x], mesh, [P(None, "x")])
    shardings = [P("x")] if given else None
    run = lambda x: map_matrices(cubic, [x], [N(0, 1)], shardings=shardings)[0]  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(placed), cubic(x), atol=5e-6, rtol=0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(run)(x) ** 3)))(placed)
    wanted = jax.grad(lambda x: jnp.sum(cubic(x) ** 3))(x)
    np.testing.assert_allclose(gradient, wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "spec", "wanted"),
    [
        (AUTO, P("x"), 0),  # every device has a model: nothing travels
        (EXPLICIT, P("x"), 0),
        (AUTO, P(None, "x"), 2),
        (EXPLICIT, P(None, "x"), 2),
    ],
)
def test_an_ensemble_is_more_matrices(kind, spec, wanted):
    """One model has too few matrices for eight devices; eight models have enough."""
    mesh = make_mesh(8, kind, (8, 1))
    (x,) = arrays([(8, 16, 24)])
    (placed,) = place([x], mesh, [spec])
    seen = []

    def function(x):
        seen.append(x.shape)
        return cubic(x)

    run = jax.vmap(lambda x: map_matrices(function, [x], [N(0, 1)])[0])
    assert len(collectives(run, placed)) == wanted
    assert set(seen) == {(1, 16, 24)}
    result = jax.jit(run)(placed)
    assert_same([result], [cubic(x)], [placed])


@pytest.mark.parametrize(
    ("kinds", "given"),
    [
        ((AUTO, AUTO), False),
        ((AUTO, AUTO), True),
        ((EXPLICIT, EXPLICIT), False),
        pytest.param((AUTO, EXPLICIT), False, marks=pytest.mark.slow),
        pytest.param((EXPLICIT, AUTO), True, marks=pytest.mark.slow),
    ],
)
def test_an_ensemble_on_one_axis_with_matrices_sharded_on_the_other_is_not_gathered(kinds, given):
    mesh = make_mesh(8, kinds, (2, 4))
    (x,) = arrays([(2, 3, 16, 24)])
    active = jnp.arange(6).reshape(2, 3) % 3 < 2
    (placed,) = place([x], mesh, [P("x", None, "y")])

    def run(x, active):
        shardings = [NamedSharding(mesh, P(None, "y"))] if given else None
        return map_matrices(cubic, [x], [N(1, 2)], active=[active], shardings=shardings)[0]

    with jax.set_mesh(mesh):
        flags = jax.device_put(active, NamedSharding(mesh, P("x")))
        compiled = jax.jit(jax.vmap(run)).lower(placed, flags).compile()
        result = compiled(placed, flags)
    assert kinds_of_collectives(compiled) == ["all-to-all"] * 2
    assert result.sharding.is_equivalent_to(placed.sharding, 4)
    chosen = np.asarray(active)
    assert_values([np.asarray(result)[chosen]], [cubic(x[chosen])])


def test_one_model_of_an_ensemble_may_share_its_arrays():
    """Operands that are not mapped, a map in a map, and gates."""
    mesh = make_mesh(8, AUTO, (2, 4))
    xs = arrays([(2, 3, 16, 24), (24, 16)])
    placed = place(xs, mesh, [P("x", None, "y"), P("y")])
    active = jnp.arange(6).reshape(2, 3) % 2 == 0

    def run(x, y, active):
        return map_matrices(cubic, [x, y], [N(0, 1)] * 2, active=[active, None])

    both = jax.vmap(jax.vmap(run, (0, None, 0)), (0, None, 0))
    first, second = jax.jit(both)(*placed, active)
    assert_values([second], [jnp.broadcast_to(cubic(xs[1][None])[0], (2, 3, 24, 16))])
    assert_values([first[active]], [cubic(xs[0][active])])


def test_what_only_xla_knows_can_be_exported():
    placed = place(arrays(FIVE), make_mesh(8, AUTO, (8, 1)), [P("x")] * 5)
    run = jax.jit(five)
    exported = jax.export.export(run)(placed)
    assert_values(jax.jit(exported.call)(placed), run(placed))


LOWERED = """
import hashlib, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from tests import test_sharding as t
placed = t.place(t.arrays(t.FIVE), t.make_mesh(8, t.AUTO, (8, 1)), [t.P("x")] * 5)
lowered = jax.jit(t.five).lower(placed)
lowered.compile()
print(hashlib.sha256(lowered.as_text().encode()).hexdigest())
"""


@pytest.mark.slow
def test_every_process_lowers_the_same_program_and_the_second_finds_it_compiled(
    tmp_path, repository
):
    outputs, entries = [], []
    for _ in range(2):
        command = [sys.executable, "-c", LOWERED, str(tmp_path)]
        outputs.append(subprocess.check_output(command, cwd=repository, text=True))
        entries.append(sorted(p.name for p in tmp_path.glob("*-cache")))
    assert outputs[0] == outputs[1]
    assert entries[0] == entries[1]
    assert any(name.startswith("jit_five-") for name in entries[0])


def test_shardings_of_leaves_follow_paths_and_prefixes():
    tree = {"a": {"b": jnp.ones(1), "c": jnp.ones(1)}, "d": jnp.ones(1)}
    given = {"a": P("x"), "d": None}
    assert of_leaves(given, tree, range(3)) == [P("x"), P("x"), None]
    assert of_leaves(lambda params: given, tree, [1]) == [P("x")]
    assert of_leaves(P("y"), tree, range(3)) == [P("y")] * 3
    assert of_leaves(None, tree, range(3)) is None
    with pytest.raises(ValueError, match=r"no entry for parameter \['d'\]"):
        of_leaves({"a": P("x")}, tree, range(3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P("z"), r"must name axes of the mesh, 'x', 'y', each at most once"),
        (P("x", "x"), r"each at most once"),
        (P(None, None, "x"), r"PartitionSpec with at most 2 entries"),
        ("x", r"must be a NamedSharding or a PartitionSpec"),
    ],
)
def test_shardings_that_do_not_fit_are_named(spec, message, unchecked):
    mesh = make_mesh(8, AUTO)
    (x,) = place(arrays([(16, 24)]), mesh, [P()])
    with pytest.raises(ValueError, match=rf"array of shape \(16, 24\).*{message}"):
        map_matrices(cubic, [x], [N(0, 1)], shardings=[spec])


def test_shardings_without_a_mesh_are_an_error_with_the_way_out():
    with pytest.raises(ValueError, match=r"has no mesh.*jax\.set_mesh"):
        map_matrices(cubic, arrays([(16, 24)]), [N(0, 1)], shardings=[P("x")])
    with pytest.raises(ValueError, match="1 shardings for 2 arrays"):
        map_matrices(cubic, arrays([(4, 4)] * 2), [N(0, 1)] * 2, shardings=[None])


PROCESS = """
import sys
import jax, numpy as np
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from tests import test_sharding as t
for kind in (t.AUTO, t.EXPLICIT):
    mesh = t.make_mesh(8, kind)
    xs = [
        jax.make_array_from_callback(x.shape, t.NamedSharding(mesh, s), np.asarray(x).__getitem__)
        for x, s in zip(t.arrays(), t.SPECS, strict=True)
    ]
    run = jax.jit(lambda xs: t.map_matrices(t.cubic, xs, t.NUMBERS, equivariant=True))
    for i, y in enumerate(run(xs)):
        whole = np.full(y.shape, np.nan, np.float32)  # NaN where the other process has the values
        for shard in y.addressable_shards:
            whole[shard.index] = shard.data
        np.save(f"{folder}/{kind.name}_{i}_{rank}.npy", whole)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_of_eight(tmp_path, repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), port, str(tmp_path)],
            cwd=repository,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for kind in (AUTO, EXPLICIT):
        placed = place(arrays(), make_mesh(8, kind))
        run = jax.jit(lambda xs: map_matrices(cubic, xs, NUMBERS, equivariant=True))
        for i, result in enumerate(run(placed)):
            halves = [np.load(tmp_path / f"{kind.name}_{i}_{rank}.npy") for rank in (0, 1)]
            both = np.where(np.isnan(halves[0]), halves[1], halves[0])
            np.testing.assert_allclose(both, np.asarray(result), atol=5e-6, rtol=0)
