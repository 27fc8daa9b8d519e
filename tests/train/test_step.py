"""One step of a small least-squares task, against NumPy."""

from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P

from mimuon_jax import lookahead_ema, outer_nesterov
from train.errors import BadInput
from train.gradients import batch_gradient
from train.mesh import batch_sharding, make_mesh
from train.step import State, abstract_state, evaluated, jit_step, make_state
from train.task import Task, split_batch

ROWS, FEATURES, OUTPUTS = 16, 4, 3
RATE = 0.1


def init(key: Any) -> Any:
    kernel = jax.random.normal(key, (FEATURES, OUTPUTS))
    return {"kernel": kernel, "bias": jnp.zeros(OUTPUTS)}, {
        "mean": jnp.zeros(FEATURES),
        "count": jnp.int32(0),
    }


def loss(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
    x, y = batch
    errors = x @ params["kernel"] + params["bias"][None] - y
    model_state = {
        "mean": 0.5 * model_state["mean"] + 0.5 * x.mean(axis=0),
        "count": model_state["count"] + 1,
    }
    return (errors**2).mean(), (model_state, {"draw": jax.random.uniform(key)})


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    random = np.random.default_rng(0)
    return [
        (random.normal(size=(ROWS, FEATURES)), random.normal(size=(ROWS, OUTPUTS)))
        for _ in range(4)
    ]


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(
        init=init,
        loss=loss,
        batches=grain.MapDataset.range(1),
        evaluate=lambda params, model_state: {"loss": 0.0},
        finish=lambda params, model_state, directory: "",
        matrices=None,
        sharding_rules=[(".*", P())],
        items_per_step=ROWS,
        unit="rows",
        loss_unit="units",
        data={},
    )


def train(
    task: Task,
    batches: list[Any],
    optimizer: Any = None,
    *,
    mesh: str = "data=1",
    explicit: bool = False,
    **options: Any,
) -> tuple[list[State], list[dict[str, float]]]:
    """The states before and after every step, on the host, and the steps' metrics."""
    optimizer = optax.with_extra_args_support(optimizer or optax.sgd(RATE))
    devices = make_mesh(mesh, explicit=explicit)
    state = make_state(task, optimizer, devices, seed=0)
    step = jit_step(
        state, task=task, optimizer=optimizer, schedule=lambda step: RATE, seed=0, **options
    )
    states, metrics = [jax.device_get(state)], []
    for batch in batches:
        rows = jax.tree.map(np.float32, batch)
        state, values = step(state, split_batch(rows, batch_sharding(devices)))
        states.append(jax.device_get(state))
        metrics.append({name: float(value) for name, value in values.items()})
    return states, metrics


Plain = tuple[list[State], list[dict[str, float]]]


@pytest.fixture(scope="module")
def plain(task: Task, batches: list[Any]) -> Plain:
    return train(task, batches)


def test_the_average_follows_parameters_and_rest(task: Task, batches: list[Any], plain: Plain):
    decay: Callable[[Any], Any] = lambda t: 0.9 * (1 - jnp.exp(-t / 2.0))  # noqa: E731
    states, _ = train(task._replace(average=decay), batches)
    expected = {"params": states[0].params, "model_state": states[0].model_state}
    for t, (state, alone) in enumerate(zip(states[1:], plain[0][1:], strict=True), start=1):
        kept = 0.9 * (1 - np.exp(-t / 2.0))
        new = {"params": state.params, "model_state": state.model_state}
        expected = jax.tree.map(lambda m, x, k=kept: k * m + (1 - k) * x, expected, new)
        expected["model_state"]["count"] = state.model_state["count"]
        params, model_state = evaluated(state)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            {"params": params, "model_state": model_state},
            expected,
        )
        close(state.params, alone.params)
        assert params["kernel"].dtype == np.float32
        assert model_state["count"].dtype == np.int32


def test_without_an_average_the_newest_is_evaluated(plain: Plain):
    state = plain[0][-1]
    assert evaluated(state) == (state.params, state.model_state)


def test_evaluations_are_at_the_point_without_lookahead(task: Task, batches: list[Any]):
    optimizer = lookahead_ema(optax.sgd(RATE), 0.5, scale=2.0)
    states, _ = train(task, batches, optimizer)
    for state in states[1:]:
        ahead = 2.0 * state.opt_state.average["kernel"]
        params, _ = evaluated(state)
        assert np.abs(ahead).max() > 0.01
        np.testing.assert_allclose(params["kernel"], state.params["kernel"] - ahead, rtol=1e-6)


def test_a_moving_average_is_one_of_the_points_without_lookahead(task: Task, batches: list[Any]):
    optimizer = lookahead_ema(optax.sgd(RATE), 0.5, scale=2.0)
    states, _ = train(task._replace(average=lambda t: 0.75 + 0 * t), batches, optimizer)
    mean = states[0].params["bias"]
    for state in states[1:]:
        mean = 0.75 * mean + 0.25 * (state.params["bias"] - 2.0 * state.opt_state.average["bias"])
        np.testing.assert_allclose(evaluated(state)[0]["bias"], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapper", [lookahead_ema, outer_nesterov])
def test_wrappers_and_factors_of_learning_rates_exclude_each_other(
    wrapper: Callable[..., Any], task: Task, batches: list[Any]
):
    with pytest.raises(BadInput, match=r"optimizer\.outer_every do not fit this task"):
        train(task._replace(rate_factors=[("bias", 3.0)]), batches, wrapper(optax.sgd(RATE)))


def test_a_factor_scales_the_learning_rate_of_its_parameters(
    task: Task, batches: list[Any], plain: Plain
):
    states, _ = train(task._replace(rate_factors=[("bias", 3.0)]), batches[:1])
    before, after, alone = states[0].params, states[1].params, plain[0][1].params
    close(after["kernel"], alone["kernel"])
    step = alone["bias"] - before["bias"]
    np.testing.assert_allclose(after["bias"] - before["bias"], 3 * step, rtol=1e-6)


def test_a_factor_of_no_parameter_is_an_error(task: Task, batches: list[Any]):
    with pytest.raises(ValueError, match=r"learning-rate factor rules.*: biases"):
        train(task._replace(rate_factors=[("biases", 3.0)]), batches[:1])


def close(x: Any, y: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), x, y)


@pytest.mark.parametrize(
    ("mesh", "micro_batches"),
    [
        pytest.param("data=1", 4, marks=pytest.mark.slow),
        pytest.param("data=2,fsdp=2", 1, marks=pytest.mark.slow),
        ("data=2,fsdp=2,tensor=2", 2),
    ],
)
@pytest.mark.parametrize("explicit", [False, True])
def test_meshes_and_micro_batches_change_nothing(
    mesh: str, micro_batches: int, explicit: bool, task: Task, batches: list[Any], plain: Plain
):
    task = task._replace(sharding_rules=[("kernel", P("fsdp", None)), ("bias", P())])
    states, metrics = train(
        task, batches, mesh=mesh, explicit=explicit, micro_batches=micro_batches
    )
    for state, alone in zip(states, plain[0], strict=True):
        close(state.params, alone.params)
    for found, wanted in zip(metrics, plain[1], strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-5)


def test_what_is_not_trained_goes_through_the_micro_batches(
    task: Task, batches: list[Any], plain: Plain
):
    states, metrics = train(task, batches[:1], micro_batches=4)
    mean = np.zeros(FEATURES)
    for part in range(4):
        mean = 0.5 * mean + 0.5 * batches[0][0][part::4].mean(axis=0)
    np.testing.assert_allclose(states[1].model_state["mean"], mean, rtol=1e-5)
    assert states[1].model_state["count"] == 4
    assert metrics[0]["draw"] != plain[1][0]["draw"]  # a mean of four random numbers


def test_a_sum_of_small_gradients_is_not_rounded_away(task: Task):
    """A float32 sum: in bfloat16, 256 + 1 is 256."""
    sizes = jnp.asarray([256.0] + [1.0] * 15)[:, None]

    def loss(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
        return (params["kernel"].sum() * batch[0].astype(jnp.bfloat16)).mean(), (model_state, {})

    result = batch_gradient(
        loss,
        {"kernel": jnp.ones(1, jnp.bfloat16)},
        (),
        (sizes,),
        jax.random.key(0),
        jnp.int32(0),
        micro_batches=16,
    )
    assert result.gradients["kernel"].dtype == jnp.bfloat16
    assert float(result.gradients["kernel"][0]) == float(jnp.bfloat16(271 / 16))


def poisoned_loss(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
    """Step 1 has a gradient that is not finite and a finite loss, step 2 a loss of NaN."""
    value, (model_state, metrics) = loss(params, model_state, batch, key, step)
    hole = jnp.where(step == 1, 0.0, 1.0) * params["kernel"].sum() ** 2
    value = value + jnp.sqrt(hole) + jnp.where(step == 2, jnp.nan, 0.0)
    return value, (model_state, metrics)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(explicit: bool, task: Task, batches: list[Any]):
    task = task._replace(loss=poisoned_loss, average=lambda t: 0.5 + 0 * t)
    states, metrics = train(
        task, batches, optax.sgd(RATE, momentum=0.9), mesh="data=2", explicit=explicit
    )
    assert np.isfinite(metrics[1]["loss"])
    assert not np.isfinite(metrics[1]["gradient_norm"])
    assert np.isnan(metrics[2]["loss"])
    assert [line["skipped"] for line in metrics] == [0, 1, 2, 0]
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]
    assert [int(state.skipped) for state in states] == [0, 0, 1, 2, 0]
    for later in states[2:4]:
        same = later._replace(step=states[1].step, skipped=states[1].skipped)
        jax.tree.map(np.testing.assert_array_equal, same, states[1])
    for name in ("params", "model_state", "opt_state", "average"):
        for x, y in zip(*(jax.tree.leaves(getattr(states[i], name)) for i in (3, 4)), strict=True):
            assert not np.array_equal(x, y)


def test_an_update_that_is_not_finite_changes_nothing(task: Task, batches: list[Any]):
    rate = optax.scale_by_schedule(lambda count: jnp.where(count == 1, jnp.inf, -RATE))
    states, metrics = train(task, batches, rate)
    assert [line["skipped"] for line in metrics] == [0, 1, 2, 3]
    jax.tree.map(np.testing.assert_array_equal, states[1].params, states[-1].params)
    assert int(states[-1].opt_state.count) == 1


def test_a_compiled_step_decides_once_whether_it_is_finite(task: Task, batches: list[Any]):
    """XLA for CPUs may compile scalars anew for the selection of every array of the state."""
    optimizer = optax.with_extra_args_support(optax.sgd(RATE, momentum=0.9))
    mesh = make_mesh("data=1")
    state = abstract_state(task, optimizer, mesh)
    step: Any = jit_step(state, task=task, optimizer=optimizer, schedule=lambda _: RATE, seed=0)
    rows = split_batch(jax.tree.map(np.float32, batches[0]), batch_sharding(mesh))
    text = step.lower(state, rows).compile().as_text()
    assert text.count(" is-finite(") == 1  # of a vector


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_grad_fn_is_the_gradient_of_the_same_batch_with_the_same_draws(
    micro_batches: int, task: Task, batches: list[Any]
):
    """SGD on the gradients that `grad_fn` returns is SGD."""

    def noisy(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
        value, aux = loss(params, model_state, batch, key, step)
        return value * (1 + jax.random.uniform(key)), aux

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any) -> Any:
        return jax.tree.map(lambda g: -RATE * g, grad_fn(params)), state

    task = task._replace(loss=noisy)
    asking = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    found, metrics = train(task, batches, asking, micro_batches=micro_batches)
    wanted, once = train(task, batches, micro_batches=micro_batches)
    close(found[-1].params, wanted[-1].params)
    assert all(line["gradients"] == 2 for line in metrics)
    assert not any("gradients" in line for line in once)


def test_a_gradient_that_nobody_asks_for_is_not_traced(task: Task, batches: list[Any]):
    traced = []

    def counted(*arguments: Any) -> Any:
        traced.append(None)
        return loss(*arguments)

    train(task._replace(loss=counted), batches[:1])
    assert len(traced) == 1


def test_a_state_that_no_checkpoint_can_hold_is_refused_with_its_place(
    task: Task, batches: list[Any]
):
    def start(params: Any) -> Any:
        return {"left": [jnp.zeros(3), jnp.zeros((2, 0))]}

    empty = optax.GradientTransformation(
        start, lambda updates, state, params=None: (updates, state)
    )
    with pytest.raises(BadInput, match=r"no entries at \.opt_state\['left'\]\[1\], shape \(2, 0\)"):
        train(task, batches, empty)
