"""The records of a run while it trains: metrics, loggers, gates, a trace, progress."""

import contextlib
import math
import signal
import time
from pathlib import Path
from typing import Any, Self

import jax

from train import run_directory
from train.config import Config
from train.errors import TrainingStopped
from train.flops import model_flops, peak_flops
from train.gates import GateLog
from train.loggers import Loggers
from train.metrics import MetricsFile
from train.progress import Reporter
from train.task import Task
from train.trace import Trace


class Record:
    """Writes metrics, gates and a trace, and shows progress.

    The numbers of a step are fetched after the next step has been dispatched, so that the device
    never waits for the host.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        reporter: Reporter,
        directory: Path,
        *,
        step: int,
        devices: int,
    ) -> None:
        """Opens the files of a run that starts or resumes at `step`."""
        self._config, self._items, self._reporter = config, task.items_per_step, reporter
        self._unit = task.unit
        files = run_directory.files(directory)
        with contextlib.ExitStack() as opened:  # closes the others even if one fails
            self._file = MetricsFile(files.metrics, step=step)
            opened.callback(self._file.close)
            self._loggers = Loggers(config, directory, reporter, step=step)
            opened.callback(self._loggers.close)
            self._gates = GateLog(files.gates, step=step)
            opened.callback(self._gates.close)
            self._trace = Trace(files.tensorboard if config.profile else None, step=step)
            opened.callback(self._trace.close)
            self._opened = opened.pop_all()
        peak = peak_flops(jax.devices()[0].device_kind)
        # Seconds per step if the devices computed the products of the model at their peak.
        self._ideal_seconds = None if peak is None else model_flops(task) / (peak * devices)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._started = self._last = time.monotonic()
        self._seconds_per_step: float | None = None
        self._compiling: float | None = None  # since when
        self.stuck = False  # whether max_skipped_steps consecutive steps were skipped

    def train(self, step: int, values: dict[str, Any]) -> None:
        """Takes the metrics of a step, still on the device, and writes those of the step before."""
        self.flush()
        self._trace.step(step, values)
        self._pending = step, values

    def flush(self) -> None:
        """Writes the metrics of the last step."""
        if self._pending is None:
            return
        (step, values), self._pending = self._pending, None
        numbers = jax.device_get(values)
        gates = numbers.pop("gates", None)
        if gates is not None:
            self._gates.write(gates)
        metrics = {name: float(value) for name, value in numbers.items()}
        self.stuck = metrics["skipped"] >= self._config.max_skipped_steps
        seconds = self._step_seconds()
        wall = {f"{self._unit}_per_second": self._items / seconds}
        if self._ideal_seconds is not None:
            wall["mfu"] = self._ideal_seconds / seconds
        self._write(step, "train", metrics, **wall)
        self._reporter.step(step, metrics, rate=self._items / seconds, mfu=wall.get("mfu"))

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the result of an evaluation.

        Raises:
            TrainingStopped: one of its numbers is infinite or NaN.
        """
        wrong = [f"{name} is {x}" for name, x in metrics.items() if not math.isfinite(x)]
        if wrong:
            raise TrainingStopped(
                f"{' and '.join(wrong)} in the evaluation at step {step} of {self._config.steps}; "
                f"{self._remedy()}"
            )
        self._write(step, "validation", metrics)
        self._reporter.validation(step, metrics["loss"])
        self._last = time.monotonic()

    def stopped(self, step: int) -> TrainingStopped:
        """The error to raise when a run is stuck, after its state has been saved."""
        return TrainingStopped(
            f"{self._config.max_skipped_steps} consecutive steps up to step {step} of "
            f"{self._config.steps} had a loss, gradient or update that is not finite, and were "
            f"skipped; the state before them is saved. The same command continues with the next "
            f"batch; {self._remedy()}"
        )

    def _remedy(self) -> str:
        """What is kept, and what to try."""
        return (
            f"metrics and checkpoints are kept in {self._config.directory}. Try a smaller "
            "--optimizer.learning-rate or --optimizer.clip-norm, with another --run-dir"
        )

    def compiling(self) -> None:
        """Says what the wait before the first step is for."""
        self._reporter.line("compiling the training step ...")
        self._compiling = time.monotonic()

    def compiled(self) -> None:
        """Says how long that took, once, if it was long."""
        if self._compiling is not None:
            seconds, self._compiling = time.monotonic() - self._compiling, None
            if seconds > 5:
                self._reporter.line(f"compiled in {seconds:.0f} s")

    @property
    def unread(self) -> signal.Signals | None:
        """SIGPIPE if nobody reads the output any more, which ends a run of one process."""
        lost = self._reporter.lost and not jax.distributed.is_initialized()
        return signal.SIGPIPE if lost else None

    def sync(self) -> None:
        """Returns when everything is on disk, so that a checkpoint may follow."""
        self._file.sync()
        self._loggers.sync()
        self._gates.sync()

    def _write(self, step: int, split: str, metrics: dict[str, float], **wall: float) -> None:
        """Writes a line of metrics, and gives it to the loggers."""
        seconds = time.monotonic() - self._started
        self._file.write(step, split, metrics, seconds=seconds, **wall)
        self._loggers.write(step, split, metrics | wall)

    def _step_seconds(self) -> float:
        """Mean seconds per step; the newest has weight 0.1, the first (compilation) none."""
        now = time.monotonic()
        newest, self._last = max(now - self._last, 1e-9), now
        if self._seconds_per_step is None:
            self._seconds_per_step = 0.0
            return newest
        mean = self._seconds_per_step or newest
        self._seconds_per_step = 0.9 * mean + 0.1 * newest
        return self._seconds_per_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
