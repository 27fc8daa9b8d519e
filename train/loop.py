"""The training loop: mesh, data, model, optimizer, state, restore, step, evaluate, save."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import grain
import jax

from train import run_directory
from train.checkpoints import Checkpoints
from train.config import Config
from train.curves import draw_loss
from train.errors import TrainingStopped
from train.mesh import batch_sharding, check_batch_size, make_mesh
from train.metrics import MetricsFile, read_metrics
from train.optimizers import make_optimizer
from train.progress import Reporter
from train.run_directory import Result
from train.step import State, jit_step, make_state
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
        TrainingStopped: the loss became infinite or NaN; checkpoints and metrics stay.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh)
    task = config.task(mesh)
    optimizer, schedule = make_optimizer(
        config.optimizer, steps=config.steps, matrices=task.matrices
    )
    known = run_directory.check_same_run(config, task.data)
    finished = run_directory.read_result(config.directory) if known else None
    if finished is not None:
        return finished
    if not known:
        run_directory.create(config, task.data)
    state = make_state(task, optimizer, mesh, config.seed)
    step = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=config.seed)
    reporter = Reporter(config.steps, unit=task.unit, loss_unit=task.loss_unit, quiet=quiet)
    with run_directory.locked(config.directory), reporter:
        run_directory.record_environment(config.directory)
        folder = run_directory.files(config.directory).checkpoints
        saved = Checkpoints(folder, keep=config.keep_checkpoints, warn=reporter.warn)
        with contextlib.closing(saved) as checkpoints:
            state = _restore(config, checkpoints, state, reporter)
            with Record(config, task, reporter, step=int(state.step)) as record:
                batches = _batches(task.batches, int(state.step), task.workers)
                batches = (split_batch(batch, batch_sharding(mesh)) for batch in batches)
                state = _fit(config, task, step, state, batches, record, checkpoints)
        return _finish(config, task, state, reporter)


class Record:
    """What is written down about a run: the metrics file, and what the reporter shows.

    A step's numbers are fetched when the next step has been dispatched, so that the device does
    not wait for the host.
    """

    def __init__(self, config: Config, task: Task, reporter: Reporter, *, step: int) -> None:
        """Opens the metrics file of a run that goes on from a step."""
        self._config, self._items, self._reporter = config, task.items_a_step, reporter
        self._unit = task.unit
        self._file = MetricsFile(run_directory.files(config.directory).metrics, step=step)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._started = self._last = time.monotonic()
        self._seconds_a_step: float | None = None

    def train(self, step: int, values: dict[str, Any]) -> None:
        """Takes the metrics of a step, still on the device, and writes those of the one before."""
        self.flush()
        self._pending = step, values

    def flush(self) -> None:
        """Writes the metrics of the last step.

        Raises:
            TrainingStopped: one of them is no finite number.
        """
        if self._pending is None:
            return
        (step, values), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in jax.device_get(values).items()}
        self._require_finite(step, metrics)
        rate = self._items / self._step_seconds()
        seconds = time.monotonic() - self._started
        wall = {"seconds": seconds, f"{self._unit}_per_second": rate}
        self._file.write(step, "train", metrics, **wall)
        self._reporter.step(step, metrics, rate=rate)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the result of an evaluation."""
        self._require_finite(step, metrics)
        self._file.write(step, "validation", metrics, seconds=time.monotonic() - self._started)
        self._reporter.validation(step, metrics["loss"])
        self._last = time.monotonic()

    def sync(self) -> None:
        """Returns when everything is on disk; a checkpoint may then follow."""
        self._file.sync()

    def _step_seconds(self) -> float:
        """Mean seconds a step, the newest weighing a tenth; the first, with compilation, apart."""
        now = time.monotonic()
        newest, self._last = max(now - self._last, 1e-9), now
        if self._seconds_a_step is None:
            self._seconds_a_step = 0.0
            return newest
        mean = self._seconds_a_step or newest
        self._seconds_a_step = 0.9 * mean + 0.1 * newest
        return self._seconds_a_step

    def _require_finite(self, step: int, metrics: dict[str, float]) -> None:
        """Ends the run if a number is infinite or NaN."""
        wrong = [
            f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)
        ]
        if wrong:
            raise TrainingStopped(
                f"{' and '.join(wrong)} at step {step} of {self._config.steps}; metrics and "
                f"checkpoints up to there stay in {self._config.directory}. Try a smaller "
                "--optimizer.learning-rate or --optimizer.clip-norm, with another --run-dir"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


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


def _batches(dataset: grain.MapDataset, start: int, workers: int) -> Iterator[Tree]:
    """This process's batches from a step on, made ahead in threads, or in processes if asked for.

    Batch `k` depends on `k` alone, so the step is all that a resumed run needs to know.
    """
    rest = dataset[start:].to_iter_dataset()
    return iter(rest.mp_prefetch(grain.MultiprocessingOptions(workers)) if workers else rest)


def _fit(
    config: Config,
    task: Task,
    step: Step,
    state: State,
    batches: Iterator[Tree],
    record: Record,
    checkpoints: Checkpoints,
) -> State:
    """Steps, evaluates and saves until the run is as long as configured."""
    done = int(state.step)
    if done == 0:
        record.validation(0, task.evaluate(state.params, state.rest))
    while done < config.steps:
        state, values = step(state, next(batches))
        done += 1
        record.train(done, values)
        last = done == config.steps
        if last or done % config.evaluate_every == 0:
            record.flush()
            metrics = task.evaluate(state.params, state.rest)
            record.validation(done, metrics)
            if last or done % (config.checkpoint_every or config.evaluate_every) == 0:
                record.sync()
                checkpoints.save(done, state, loss=metrics["loss"])
    return state


def _finish(config: Config, task: Task, state: State, reporter: Reporter) -> Result:
    """Draws the curve, writes the samples and, last of all, the result."""
    files = run_directory.files(config.directory)
    title = f"{config.preset}, {type(config.optimizer).__name__}, seed {config.seed}"
    draw_loss(files.metrics, files.curve, title=title, loss_unit=task.loss_unit)
    reporter.line(task.finish(state.params, state.rest, config.directory))
    losses = {
        line["step"]: line["loss"]
        for line in read_metrics(files.metrics)
        if line["split"] == "validation"
    }
    best = min(losses, key=losses.__getitem__)
    result = Result(
        run_dir=config.directory,
        steps=config.steps,
        initial_validation_loss=losses[0],
        validation_loss=losses[config.steps],
        best_validation_loss=losses[best],
        best_step=best,
        trained=True,
    )
    run_directory.write_result(result)
    reporter.line(
        f"{config.directory}: validation loss {result.initial_validation_loss:.4f} -> "
        f"{result.validation_loss:.4f} {task.loss_unit} (best {result.best_validation_loss:.4f} "
        f"at step {best})"
    )
    return result
