"""On Auto axes `update` knows under jit how `init` saw the parameters outside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mimuon_jax as mj
from tests.test_sharding import collectives, cubic, kinds_of_collectives

pytestmark = pytest.mark.standard_promotion

# Three shapes, so that matrices of unknown layout need three exchanges along each mesh axis.
SHAPES = {"w0": (16, 24), "w1": (16, 24), "w2": (24, 16), "w3": (32, 16), "w4": (8, 16)}
LAYOUTS = {
    "fsdp": ((8,), P("fsdp")),
    "2d": ((4, 2), P("fsdp", "tensor")),
}


def tree():
    random = np.random.default_rng(0)
    return {n: jnp.asarray(random.standard_normal(s), jnp.float32) for n, s in SHAPES.items()}


def make_mesh(sizes):
    return jax.make_mesh(sizes, ("fsdp", "tensor")[: len(sizes)], (AxisType.Auto,) * len(sizes))


def on_mesh(sizes, spec):
    return jax.device_put(tree(), NamedSharding(make_mesh(sizes), spec))


def make():
    return mj.orthogonalize(cubic, equivariant=True)


def expected():
    return make().update(tree(), optax.EmptyState())[0]


def steps(tx, params):
    """The collectives of an update, and its results."""
    compiled = jax.jit(lambda g: tx.update(g, optax.EmptyState())[0]).lower(params).compile()
    return kinds_of_collectives(compiled), compiled(params)


def assert_results(results, params):
    for name, wanted in expected().items():
        np.testing.assert_allclose(results[name], wanted, atol=5e-6, rtol=0)
        sharding, ndim = params[name].sharding, wanted.ndim
        assert results[name].sharding.is_equivalent_to(sharding, ndim), name


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        pytest.param(*LAYOUTS["fsdp"], id="fsdp", marks=pytest.mark.slow),
        pytest.param(*LAYOUTS["2d"], id="2d"),
    ],
)
def test_one_exchange_there_and_one_back(sizes, spec):
    tx, params = make(), on_mesh(sizes, spec)
    jax.eval_shape(tx.init, params)  # shows nothing, and hides nothing
    tx.init(params)
    kinds, results = steps(tx, params)
    assert kinds == ["all-to-all"] * 2
    assert_results(results, params)


def test_an_init_under_jit_shows_nothing_until_the_arrays_are_shown():
    tx, params = make(), on_mesh(*LAYOUTS["fsdp"])
    jax.jit(tx.init)(params)
    kinds, results = steps(tx, params)
    assert len(kinds) > 2
    assert_results(results, params)
    jax.eval_shape(lambda: tx.init(params))
    assert steps(tx, params)[0] == ["all-to-all"] * 2


def test_shapes_with_shardings_are_enough():
    tx, params = make(), on_mesh(*LAYOUTS["2d"])
    tx.init(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    )
    assert steps(tx, params)[0] == ["all-to-all"] * 2


def test_one_transformation_serves_several_meshes():
    tx = make()
    placed = [on_mesh(*layout) for layout in LAYOUTS.values()]
    for params in placed:
        tx.init(params)
    assert [steps(tx, params)[0] for params in placed] == [["all-to-all"] * 2] * 2


def test_two_layouts_of_the_same_parameters_on_one_mesh_count_as_unknown():
    tx, params = make(), on_mesh(*LAYOUTS["fsdp"])
    tx.init(params)
    tx.init(on_mesh((8,), P(None, "fsdp")))
    kinds, results = steps(tx, params)
    assert len(kinds) > 2
    assert_results(results, params)


@pytest.mark.slow
def test_a_layout_that_has_changed_costs_time_alone():
    tx = make()
    tx.init(on_mesh((8,), P(None, "fsdp")))
    _, results = steps(tx, on_mesh((8,), P("fsdp")))
    for name, wanted in expected().items():
        np.testing.assert_allclose(results[name], wanted, atol=5e-6, rtol=0)


def test_parameters_may_be_sharded_after_they_were_replicated():
    tx = make()
    tx.init(on_mesh((8,), P()))
    params = on_mesh((8,), P("fsdp"))
    _, results = steps(tx, params)
    assert_results(results, params)  # sharded


def test_within_shard_map_every_device_has_matrices_of_its_own():
    tx, params = make(), on_mesh((8,), P("fsdp"))
    tx.init(params)  # sharded there; within this shard_map each device holds whole matrices
    mesh = params["w0"].sharding.mesh

    def of_this_device(params):
        factor = 1.0 + jax.lax.axis_index("fsdp")
        rolled = jax.tree.map(lambda x: jnp.roll(x, jax.lax.axis_index("fsdp"), 0), params)
        results = tx.update(jax.tree.map(lambda x: factor * x, rolled), optax.EmptyState())[0]
        return jax.tree.map(lambda y: y[None], results)

    run = jax.shard_map(of_this_device, mesh=mesh, in_specs=P(), out_specs=P("fsdp"))
    compiled = jax.jit(run).lower(params).compile()
    assert set(kinds_of_collectives(compiled)) == {"all-gather"}  # of the parameters
    results = compiled(params)
    for name, wanted in expected().items():
        for i in range(8):
            np.testing.assert_allclose(results[name][i], jnp.roll(wanted, i, 0), atol=5e-6, rtol=0)


def test_the_state_holds_nothing_of_it():
    params = on_mesh(*LAYOUTS["fsdp"])
    for tx in (make(), mj.threshold_gate(make(), threshold=1.0)):
        structures = [jax.tree.structure(tx.init(p)) for p in (params, tree())]
        assert structures[0] == structures[1]


@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(lambda: mj.threshold_gate(make(), threshold=1.0, measure="rms"), id="gate"),
        pytest.param(
            lambda: mj.select_slices(0.5, orthogonalizer=cubic), id="slices", marks=pytest.mark.slow
        ),
        pytest.param(lambda: mj.retract("spectral"), id="retract", marks=pytest.mark.slow),
        pytest.param(lambda: mj.match_param_norm("spectral"), id="norm", marks=pytest.mark.slow),
        pytest.param(
            lambda: mj.muon(0.1, orthogonalizer=cubic, split={"w3": (8, 8)}),
            id="split",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_everything_that_moves_matrices_remembers(tx):
    params = on_mesh(*LAYOUTS["2d"])
    counts = []
    for jitted in (False, True):
        chosen = optax.with_extra_args_support(tx())
        state = (jax.jit(chosen.init) if jitted else chosen.init)(params)
        update = lambda g, s, p: chosen.update(g, s, p)  # noqa: B023, E731
        kinds = collectives(update, params, state, params)
        counts.append(kinds.count("all-to-all"))
    assert 2 <= counts[0] < counts[1]


def test_a_model_of_nnx_that_states_nothing():
    mesh = make_mesh((8,))
    model = nnx.List([nnx.Linear(16, 8 * i, rngs=nnx.Rngs(i)) for i in (1, 2, 3)])
    layout = NamedSharding(mesh, P("fsdp"))
    nnx.update(model, jax.device_put(nnx.state(model), layout))
    optimizer = nnx.Optimizer(model, mj.muon(0.1, orthogonalizer=cubic), wrt=nnx.Param)

    def step(model, optimizer):
        loss = lambda model: sum(jnp.sum(layer.kernel**2) for layer in model)  # noqa: E731
        optimizer.update(model, nnx.grad(loss)(model))

    compiled = nnx.jit(step).lower(model, optimizer).compile()
    assert kinds_of_collectives(compiled).count("all-to-all") == 2
