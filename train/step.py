"""The training state and the training step: pure functions, which the loop jits."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int32, PRNGKeyArray

from mimuon_jax import evaluation_params
from mimuon_jax.diagnostics import gate_decisions, gate_rate, has_gate
from train.average import first_average, follows_steps, like, looks_ahead, next_average
from train.errors import require
from train.gradients import BatchGradient, batch_gradient
from train.mesh import following_shardings, on_automatic_axes, tree_shardings
from train.rules import first_matches
from train.task import Task, Tree


class State(NamedTuple):
    """What the next step needs; the data position and the random key follow from `step`."""

    step: Int32[Array, ""]  # steps done
    skipped: Int32[Array, ""]  # consecutive skipped steps up to this one
    params: Tree
    model_state: Tree
    opt_state: optax.OptState
    # Moving average of (params, model_state), if the task has one; with an optimizer that looks
    # ahead, that of the point to evaluate, or the point itself.
    average: Tree = None


def evaluated(state: State) -> tuple[Tree, Tree]:
    """The `params` and `model_state` to evaluate and sample with: their average, if there is one.

    They are on Auto axes, even if the state is on Explicit axes.
    """
    newest = state.params, state.model_state
    chosen = newest if state.average is None else like(state.average, newest)
    return on_automatic_axes(chosen)


def parameter_shardings(task: Task, mesh: Mesh) -> Tree:
    """The shardings of the parameters on a mesh, by the task's rules."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return tree_shardings(params, task.sharding_rules, mesh)


def abstract_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh) -> State:
    """The state as shapes and shardings, by the task's rules.

    This is enough to compile a step for devices that lack the memory or do not exist.

    Raises:
        BadInput: an array without entries, which a checkpoint cannot hold.
    """
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    everywhere: Any = NamedSharding(mesh, P())
    layout = parameter_shardings(task, mesh)
    opt_state = jax.eval_shape(optimizer.init, params)
    average = None
    if task.average is not None or looks_ahead(opt_state):
        average = jax.eval_shape(first_average, (params, model_state))
    require(
        not (follows_steps(opt_state) and task.rate_factors),
        "optimizer.lookahead and optimizer.outer_every do not fit this task, whose parameters have "
        "learning rates of their own; leave both out",
    )
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = State(count, count, params, model_state, opt_state, average)
    for path, x in jax.tree.leaves_with_path(shapes):
        require(
            x.size > 0,
            f"the training state has no entries at {jax.tree_util.keystr(path)}, "
            f"shape {x.shape}, which a checkpoint cannot hold; remove the parameter, or let the "
            "optimizer keep None",
        )
    model_state_layout = jax.tree.map(lambda _: everywhere, model_state)
    layouts = State(
        everywhere,
        everywhere,
        layout,
        model_state_layout,
        following_shardings(opt_state, params, layout, mesh),
        None if average is None else (layout, model_state_layout),
    )
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        layouts,
    )


def make_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> State:
    """The initial state, sharded on the mesh.

    Args:
        task: provides initial parameters and sharding rules.
        optimizer: provides its own state.
        mesh: the mesh that holds the arrays.
        seed: seed of the initial parameters, which do not depend on the mesh.

    Returns:
        The state before the first step.
    """
    shapes = abstract_state(task, optimizer, mesh)
    like = jax.tree.map(lambda x: x.sharding, shapes)
    key, _ = _keys(seed)
    if task.pretrained is None:
        params, model_state = jax.jit(task.init, out_shardings=(like.params, like.model_state))(key)
    else:
        params, model_state = task.pretrained((shapes.params, shapes.model_state), key)
    opt_state = jax.jit(optimizer.init, out_shardings=like.opt_state)(params)
    step, skipped = jax.device_put((jnp.int32(0), jnp.int32(0)), like.step)
    average = None
    if like.average is not None:
        average = jax.jit(first_average, out_shardings=like.average)((params, model_state))
    return State(step, skipped, params, model_state, opt_state, average)


def train_step(
    state: State,
    batch: Tree,
    *,
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    seed: int,
    micro_batches: int = 1,
    layout: Tree = None,
) -> tuple[State, dict[str, Array]]:
    """One optimizer step, skipped if its loss, gradient or update is not finite.

    Args:
        state: the state after `t` steps.
        batch: batch `t`.
        task: provides the loss.
        optimizer: turns gradients into updates; it may call `grad_fn`, the gradient of this batch
            at other parameters.
        schedule: the learning rate, only to be recorded.
        seed: seed of the run; with `t` it gives the random key of the step.
        micro_batches: number of parts of the batch whose gradients are averaged one after another.
        layout: shardings of the parameters, on Auto axes; None: there is no mesh.

    Returns:
        The state after `t + 1` steps, and scalars: `loss`, `gradient_norm` (before clipping),
        `learning_rate`, `skipped` (consecutive skipped steps up to this one), the metrics of the
        task and, if they apply, `gate_rate`, `gradients` (their number in this step, if more than
        one) and `max_logit` (the largest of all heads, before the step). `gates` is not a scalar:
        it has the decision for every matrix.
    """
    key = jax.random.fold_in(_keys(seed)[1], state.step)
    evaluations = 0

    def gradient(params: Tree) -> BatchGradient:
        nonlocal evaluations
        evaluations += 1
        return batch_gradient(
            task.loss,
            params,
            state.model_state,
            batch,
            key,
            state.step,
            micro_batches=micro_batches,
            layout=layout,
        )

    loss, gradients, model_state, metrics = gradient(state.params)
    metrics = dict(metrics)
    largest = metrics.pop("max_logits", None)
    logits = {} if largest is None else {"max_logits": largest}
    # Unless the optimizer calls `grad_fn`, it is never traced and costs nothing.
    updates, opt_state = optimizer.update(
        gradients,
        state.opt_state,
        state.params,
        grad_fn=lambda params: gradient(params).gradients,
        **logits,
    )
    updates = _scaled(updates, task.rate_factors)
    new = state._replace(
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
    )
    if state.average is not None:
        average = _next_average(task, state, evaluation_params(opt_state, new.params), model_state)
        new = new._replace(average=average)
    norm = optax.tree.norm(gradients)
    new = _if_finite(new, state, loss, norm, optax.tree.norm(updates))
    return new, {
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "skipped": new.skipped,
        **(_gates(opt_state) if has_gate(opt_state) else {}),
        **({"gradients": jnp.int32(evaluations)} if evaluations > 1 else {}),
        **({"max_logit": jnp.stack([x.max() for x in largest.values()]).max()} if largest else {}),
        **metrics,
    }


def _if_finite(new: State, old: State, *numbers: Array) -> State:
    """The new state, or the old one with one more skipped step if a number is not finite."""
    # A reduction: what is elementwise, XLA for CPUs compiles anew for every array selected below.
    finite = jnp.isfinite(jnp.stack(numbers)).all()
    chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    return chosen._replace(step=old.step + 1, skipped=jnp.where(finite, 0, old.skipped + 1))


def jit_step(
    state: State,
    *,
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    seed: int,
    micro_batches: int = 1,
) -> Callable[[State, Tree], tuple[State, dict[str, Any]]]:
    """`train_step`, compiled for the shardings of a state; the old state's buffers are reused.

    The output has the shardings of the input, so that step 2 does not compile again.
    """

    def step(state: State, batch: Tree) -> tuple[State, dict[str, Any]]:
        return train_step(
            state,
            batch,
            task=task,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            micro_batches=micro_batches,
            layout=on_automatic_axes(layout.params),
        )

    layout = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, None))


def _next_average(task: Task, state: State, params: Tree, model_state: Tree) -> Tree:
    """What to evaluate after a step: the task's average, or without one the given point."""
    if task.average is None:
        return first_average((params, model_state))
    decay = jnp.asarray(task.average((state.step + 1).astype(jnp.float32)), jnp.float32)
    return next_average(state.average, (params, model_state), decay)


def _gates(opt_state: optax.OptState) -> dict[str, Any]:
    """The decisions of the optimizer's gate."""
    return {"gate_rate": gate_rate(opt_state), "gates": gate_decisions(opt_state)}


def _scaled(updates: Tree, rules: Sequence[tuple[str, float]]) -> Tree:
    """Updates, multiplied by the factors of their learning rates."""
    if not rules:
        return updates
    factors = first_matches(updates, rules, kind="learning-rate factor", default=(1.0,))
    return jax.tree.map(lambda update, factor: update * factor, updates, factors)


def _keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys of a run: for the initial parameters and for the steps."""
    initial, steps = jax.random.split(jax.random.key(seed))
    return initial, steps
