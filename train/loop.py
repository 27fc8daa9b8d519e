"""The training loop: mesh, data, model, optimizer, state, restore, step, evaluate, save."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
from absl import flags

from train import distributed, run_directory
from train.checkpoint_folder import Evaluations, best_evaluation
from train.checkpoints import Checkpoints
from train.config import Config
from train.curves import draw_curves
from train.errors import Interrupted, one_line, shown
from train.files import writing
from train.gates import closed_throughout, draw_gates
from train.interruption import Interruption
from train.loggers import require_installed
from train.mesh import automatic, batch_sharding, check_batch_size, make_mesh
from train.metrics import validations
from train.optimizers import make_optimizer
from train.precision import products
from train.progress import Reporter
from train.record import Record
from train.run_directory import Result
from train.step import State, evaluated, jit_step, make_state, parameter_shardings
from train.task import Task, Tree, split_batch

Step = Callable[[State, Tree], tuple[State, dict[str, Any]]]


def run(config: Config, *, quiet: bool = False) -> Result:
    """Trains the run of a configuration, or resumes it where an earlier call ended.

    Args:
        config: everything about the run.
        quiet: print only warnings.

    Returns:
        The losses, and the run directory. A finished run is not trained again.

    Raises:
        BadInput: the configuration cannot be run here; nothing was written.
        TrainingStopped: losses or gradients stayed infinite or NaN; what was saved remains.
        MachineError: a full disk, a lost folder; the same call continues once that is repaired.
    """
    require_installed(config.log)
    distributed.join(config.processes)
    with products(config.precision):
        return _run(config, quiet)


def _run(config: Config, quiet: bool) -> Result:
    """`run`, in a context that has the configured precision."""
    mesh = make_mesh(config.mesh, explicit=config.mesh_axes == "explicit")
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    task = config.task(automatic(mesh))
    optimizer, schedule = make_optimizer(
        config.optimizer,
        steps=config.steps,
        matrices=task.matrices,
        shardings=parameter_shardings(task, mesh),
        split=task.split,
        specs=task.query_key,
    )
    finished = _finished(config, task)
    if finished is not None:
        return finished
    state = make_state(task, optimizer, mesh, config.seed)
    step = jit_step(
        state,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        micro_batches=config.micro_batches,
    )
    quiet = quiet or not distributed.leads()
    reporter = Reporter(config.steps, unit=task.unit, loss_unit=task.loss_unit, quiet=quiet)
    with _claimed(config, task, reporter) as directory, reporter:
        folder = run_directory.files(config.directory).checkpoints
        saved = Checkpoints(
            folder, keep=config.keep_checkpoints, best=task.best, warn=reporter.warn
        )
        with contextlib.closing(saved) as checkpoints:
            state = _restore(config, checkpoints, state, reporter)
            done = int(state.step)
            with (
                Record(config, task, reporter, directory, step=done, devices=mesh.size) as record,
                contextlib.closing(_batches(task.batches, done, task.workers)) as made,
            ):
                batches = (split_batch(batch, batch_sharding(mesh)) for batch in made)
                state = _fit(config, task, step, state, batches, record, checkpoints)
        return _finish(config, task, state, saved.evaluations, reporter, directory)


def _finished(config: Config, task: Task) -> Result | None:
    """The result of the run if it has finished; raises unless the run directory may be used."""
    known = distributed.together(lambda: run_directory.check_same_run(config, task.data))
    found = None if known is None else run_directory.read_result(config.directory)
    finished = None if found is None or found.steps < config.steps else found
    seen = (known is not None) + (finished is not None)
    distributed.require_shared(f"run_dir={config.directory}", seen)
    return finished


@contextlib.contextmanager
def _claimed(config: Config, task: Task, reporter: Reporter) -> Iterator[Path]:
    """Locks the run directory, describes the run in it and records this start.

    Yields the folder to write to: the run directory on process 0, a temporary one elsewhere.
    """
    with contextlib.ExitStack() as held:

        def claim() -> None:
            held.enter_context(run_directory.locked(config.directory))
            # Once more: another process may have started its run before this one had the lock.
            changed = run_directory.check_same_run(config, task.data)
            if changed is None or changed:
                run_directory.describe(config, task.data, task.files)
            for line in changed or ():
                reporter.line(line)
            run_directory.record_environment(config.directory)
            run_directory.write_texts(config.directory, task.files)

        distributed.first_alone(claim)
        yield held.enter_context(distributed.own_directory(config.directory))


def _restore(config: Config, checkpoints: Checkpoints, state: State, reporter: Reporter) -> State:
    """The state of the newest checkpoint, or the given state if there is none."""
    restored = checkpoints.restore(state)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    reporter.line(
        f"{config.preset}: {count:,} parameters, {config.steps} steps, in {config.directory}"
    )
    if restored is None:
        return state
    reporter.line(f"resuming after step {int(restored.step)}")
    if 0 not in checkpoints.evaluations:  # a checkpoint of an earlier release has but its own
        logged = validations(run_directory.files(config.directory).metrics)
        before = {step: found for step, found in logged.items() if step <= int(restored.step)}
        checkpoints.evaluations = before | checkpoints.evaluations
    return restored


def _batches(dataset: grain.MapDataset, start: int, workers: int) -> grain.DatasetIterator:
    """This process's batches from step `start`, prefetched in threads or in worker processes.

    Batch `k` depends only on `k`, so the step is all that a resumed run needs. Few batches are
    prefetched: Grain's default of 500 would need 20 GB for batches of 32 images of 640 x 640.
    """
    ahead = 4 if workers else 16  # per process
    remaining = dataset[start:].to_iter_dataset(grain.ReadOptions(ahead, ahead))
    if not workers:
        return iter(remaining)
    flags.FLAGS.mark_as_parsed()  # Grain reads flags, which only absl programs parse
    return iter(remaining.mp_prefetch(grain.MultiprocessingOptions(workers)))


def _fit(
    config: Config,
    task: Task,
    step: Step,
    state: State,
    batches: Iterator[Tree],
    record: Record,
    checkpoints: Checkpoints,
) -> State:
    """Steps, evaluates and saves until the configured length, or until a signal."""
    done = int(state.step)
    if done == 0:
        checkpoints.evaluations[0] = task.evaluate(*evaluated(state))
        record.validation(0, checkpoints.evaluations[0])
    record.compiling()
    with Interruption() as interruption:
        while done < config.steps:
            state, values = step(state, next(batches))
            record.compiled()
            done += 1
            record.train(done, values)
            if done == config.steps or done % config.evaluate_every == 0:
                record.flush()
                checkpoints.evaluations[done] = task.evaluate(*evaluated(state))
                record.validation(done, checkpoints.evaluations[done])
            received, stuck = interruption.requested(done) or record.unread, record.stuck
            if received or stuck or _checkpoint_due(config, done):
                record.flush()
                record.sync()
                checkpoints.save(done, state)
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
    """Whether a checkpoint is due after this step."""
    every = config.checkpoint_every or config.evaluate_every
    return done == config.steps or done % every == 0


def _finish(
    config: Config,
    task: Task,
    state: State,
    evaluations: Evaluations,
    reporter: Reporter,
    directory: Path,
) -> Result:
    """Writes the samples, draws the curves and, last, writes the result."""
    with writing(directory):
        reporter.line(shown(task.finish(*evaluated(state), directory)))
    distributed.first_alone(lambda: _draw(config, task, reporter))
    if config.steps not in evaluations:  # only after a checkpoint of an earlier release
        evaluations[config.steps] = task.evaluate(*evaluated(state))
    name, direction = task.best
    best = best_evaluation(evaluations, name, direction)
    assert best is not None
    result = Result(
        run_dir=config.directory,
        steps=config.steps,
        initial_validation_loss=evaluations[min(evaluations)]["loss"],
        validation_loss=evaluations[config.steps]["loss"],
        best_metric=name,
        best_value=evaluations[best][name],
        best_step=best,
        trained=True,
    )
    distributed.first_alone(lambda: run_directory.write_result(result))
    reporter.line(
        f"{config.directory}: validation loss {result.initial_validation_loss:.4f} -> "
        f"{result.validation_loss:.4f} {task.loss_unit} (best {name} {result.best_value:.4f} "
        f"at step {best})"
    )
    return result


def _draw(config: Config, task: Task, reporter: Reporter) -> None:
    """Draws the curves and the gates; a damaged log costs its picture, not the result."""
    files = run_directory.files(config.directory)
    title = f"{config.preset}, {type(config.optimizer).__name__}, seed {config.seed}"
    curve = functools.partial(
        draw_curves,
        files.metrics,
        files.curve,
        title=title,
        loss_unit=task.loss_unit,
        best=task.best[0],
    )
    gates = functools.partial(draw_gates, files.gates, files.gates_picture, title=title)
    for draw in (curve, gates) if files.gates.exists() else (curve,):
        try:
            draw()
        except (OSError, ValueError, IndexError) as error:
            reporter.warn(f"{draw.args[1]} was not drawn: {one_line(error)}")
        else:
            if draw is gates and (line := closed_throughout(files.gates)) is not None:
                reporter.warn(line)
