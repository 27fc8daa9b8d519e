"""The training loop: mesh, data, model, optimizer, state, restore, step, evaluate, save."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
from absl import flags

from train import run_directory
from train.checkpoints import Checkpoints
from train.config import Config
from train.curves import draw_loss
from train.errors import Interrupted
from train.gates import draw_gates
from train.interruption import Interruption
from train.mesh import automatic, batch_sharding, check_batch_size, make_mesh
from train.metrics import read_metrics
from train.optimizers import make_optimizer
from train.progress import Reporter
from train.record import Record
from train.run_directory import Result
from train.step import State, evaluated, jit_step, make_state, parameter_shardings
from train.task import Task, Tree, split_batch

Step = Callable[[State, Tree], tuple[State, dict[str, Any]]]


def run(config: Config, *, quiet: bool = False) -> Result:
    """Trains what a configuration says, or goes on where an earlier call was ended.

    Args:
        config: everything about the run.
        quiet: print warnings alone.

    Returns:
        The losses, and the directory that everything was written to. A run that had finished
        before is not trained again.

    Raises:
        BadInput: a configuration that cannot be run here; nothing was written.
        TrainingStopped: losses or gradients stayed infinite or NaN; checkpoints and metrics stay.
    """
    mesh = make_mesh(config.mesh, explicit=config.mesh_axes == "explicit")
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    task = config.task(automatic(mesh))
    optimizer, schedule = make_optimizer(
        config.optimizer,
        steps=config.steps,
        matrices=task.matrices,
        shardings=parameter_shardings(task, mesh),
        split=task.split,
    )
    known = run_directory.check_same_run(config, task.data)
    finished = run_directory.read_result(config.directory) if known else None
    if finished is not None:
        return finished
    if not known:
        run_directory.create(config, task.data)
    state = make_state(task, optimizer, mesh, config.seed)
    step = jit_step(
        state,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        micro_batches=config.micro_batches,
    )
    reporter = Reporter(config.steps, unit=task.unit, loss_unit=task.loss_unit, quiet=quiet)
    with run_directory.locked(config.directory), reporter:
        run_directory.record_environment(config.directory)
        run_directory.write_texts(config.directory, task.files)
        folder = run_directory.files(config.directory).checkpoints
        saved = Checkpoints(
            folder, keep=config.keep_checkpoints, best=task.best, warn=reporter.warn
        )
        with contextlib.closing(saved) as checkpoints:
            state = _restore(config, checkpoints, state, reporter)
            done = int(state.step)
            with (
                Record(config, task, reporter, step=done, devices=mesh.size) as record,
                contextlib.closing(_batches(task.batches, done, task.workers)) as made,
            ):
                batches = (split_batch(batch, batch_sharding(mesh)) for batch in made)
                state = _fit(config, task, step, state, batches, record, checkpoints)
        return _finish(config, task, state, reporter)


def _restore(config: Config, checkpoints: Checkpoints, state: State, reporter: Reporter) -> State:
    """The newest checkpoint's state, or the given one."""
    restored = checkpoints.restore(state)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    reporter.line(
        f"{config.preset}: {count:,} parameters, {config.steps} steps, in {config.directory}"
    )
    if restored is None:
        return state
    reporter.line(f"resuming after step {int(restored.step)}")
    return restored


def _batches(dataset: grain.MapDataset, start: int, workers: int) -> grain.DatasetIterator:
    """This process's batches from a step on, made ahead in threads, or in processes if asked for.

    Batch `k` depends on `k` alone, so the step is all that a resumed run needs to know. Few are
    made ahead: Grain's own 500 of 32 images with 640 pixels a side would be 20 GB.
    """
    ahead = 4 if workers else 16  # in each process
    rest = dataset[start:].to_iter_dataset(grain.ReadOptions(ahead, ahead))
    if not workers:
        return iter(rest)
    flags.FLAGS.mark_as_parsed()  # Grain reads flags, which are parsed in programs of absl alone
    return iter(rest.mp_prefetch(grain.MultiprocessingOptions(workers)))


def _fit(
    config: Config,
    task: Task,
    step: Step,
    state: State,
    batches: Iterator[Tree],
    record: Record,
    checkpoints: Checkpoints,
) -> State:
    """Steps, evaluates and saves until the run is as long as configured, or a signal ends it."""
    done = int(state.step)
    if done == 0:
        record.validation(0, task.evaluate(*evaluated(state)))
    with Interruption() as interruption:
        while done < config.steps:
            state, values = step(state, next(batches))
            done += 1
            record.train(done, values)
            metrics = None
            if done == config.steps or done % config.evaluate_every == 0:
                record.flush()
                metrics = task.evaluate(*evaluated(state))
                record.validation(done, metrics)
            received, stuck = interruption.requested(done), record.stuck
            if received or stuck or _checkpoint_due(config, done):
                record.flush()
                record.sync()
                checkpoints.save(done, state, metrics)
            if stuck:
                checkpoints.wait()
                raise record.stopped(done)
            if received and done < config.steps:
                checkpoints.wait()
                raise Interrupted(
                    f"{received.name}; saved after step {done} of {config.steps} in "
                    f"{config.directory}, the same command resumes there",
                    received,
                )
    return state


def _checkpoint_due(config: Config, done: int) -> bool:
    """Whether a checkpoint belongs after this step."""
    every = config.checkpoint_every or config.evaluate_every
    return done == config.steps or done % every == 0


def _finish(config: Config, task: Task, state: State, reporter: Reporter) -> Result:
    """Draws the curve, writes the samples and, last of all, the result."""
    files = run_directory.files(config.directory)
    title = f"{config.preset}, {type(config.optimizer).__name__}, seed {config.seed}"
    draw_loss(files.metrics, files.curve, title=title, loss_unit=task.loss_unit)
    if files.gates.exists():
        draw_gates(files.gates, files.gates_picture, title=title)
    reporter.line(task.finish(*evaluated(state), config.directory))
    lines = read_metrics(files.metrics)
    evaluations = {line["step"]: line for line in lines if line["split"] == "validation"}
    name, direction = task.best
    choose = min if direction == "min" else max
    best = choose(evaluations, key=lambda step: evaluations[step][name])
    result = Result(
        run_dir=config.directory,
        steps=config.steps,
        initial_validation_loss=evaluations[0]["loss"],
        validation_loss=evaluations[config.steps]["loss"],
        best_metric=name,
        best_value=evaluations[best][name],
        best_step=best,
        trained=True,
    )
    run_directory.write_result(result)
    reporter.line(
        f"{config.directory}: validation loss {result.initial_validation_loss:.4f} -> "
        f"{result.validation_loss:.4f} {task.loss_unit} (best {name} {result.best_value:.4f} "
        f"at step {best})"
    )
    return result
