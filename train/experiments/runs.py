"""The runs of a comparison: training them once, reading them again, and what they cost."""

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from train import run_directory
from train.config import Config
from train.errors import BadInput, TrainingStopped, one_line
from train.files import write_atomically
from train.integrity import read_json
from train.loop import run
from train.mesh import automatic, batch_sharding, make_mesh
from train.metrics import read_metrics
from train.optimizers import make_optimizer
from train.step import State, jit_step, make_state, parameter_shardings
from train.task import Task, Tree, split_batch

STOPPED = "stopped.txt"  # in the folder of a run that could not continue: the reason


class Run(NamedTuple):
    """One training run: an optimizer with one setting and one seed."""

    label: str  # name of the optimizer in the comparison
    setting: str  # `field=value`, or '' for the optimizer's own
    seed: int
    config: Config

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.config.directory


class Outcome(NamedTuple):
    """The result of a run; metrics in the order of the steps."""

    run: Run
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    stopped: str | None  # why it could not continue

    def final(self, split: str, metric: str) -> float:
        """The last value of a metric; for training, the mean over the last tenth of the run.

        The gap is the difference of the two, validation - training. NaN if there is no value, or if
        the run stopped.
        """
        if split == "gap":
            return self.final("validation", metric) - self.final("train", metric)
        lines = self.validation[-1:] if split == "validation" else self.train
        tail = lines[-max(len(lines) // 10, 1) :]
        values = [line[metric] for line in tail if metric in line]
        return float(np.mean(values)) if values and not self.stopped else float("nan")

    def best(self, metric: str, mode: str) -> float:
        """The best value of a metric over all evaluations; NaN if the run stopped."""
        _, values = self.series("validation", metric)
        if self.stopped or not values.size:
            return float("nan")
        return float(values.min() if mode == "min" else values.max())

    def mean(self, split: str, metric: str) -> float:
        """The mean of a metric over the whole run; NaN if it is missing or the run stopped."""
        _, values = self.series(split, metric)
        return float(values.mean()) if values.size and not self.stopped else float("nan")

    def at_training_loss(self, level: float, metric: str) -> float:
        """A validation metric when the training loss first reaches a level.

        The training loss at an evaluation is the mean over the steps around it, up to half the
        distance between evaluations; between evaluations both are interpolated. NaN if it never
        does, or if the run stopped.
        """
        at, values = self.series("validation", metric)
        steps, losses = self.series("train", "loss")
        if self.stopped or len(at) < 2:
            return float("nan")
        half = (at[1] - at[0]) / 2
        around = np.asarray([losses[np.abs(steps - step) <= half].mean() for step in at])
        (reached,) = np.nonzero(around <= level)
        if not reached.size:
            return float("nan")
        k = int(reached[0])
        if k == 0:
            return float(values[0])
        part = (around[k - 1] - level) / (around[k - 1] - around[k])
        return float(values[k - 1] + part * (values[k] - values[k - 1]))

    def series(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric."""
        lines = self.validation if split == "validation" else self.train
        pairs = [(line["step"], line[metric]) for line in lines if metric in line]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.asarray(steps), np.asarray(values, np.float64)

    def step_seconds(self) -> float:
        """Median time from one step to the next, in seconds; NaN for a single step."""
        found = [
            after["wall"]["seconds"] - before["wall"]["seconds"]
            for before, after in zip(self.train, self.train[1:], strict=False)
            if after["step"] == before["step"] + 1
        ]
        return float(np.median([x for x in found if x > 0] or [np.nan]))


def train(planned: Run, say: Callable[[str], None]) -> Outcome:
    """Trains a run, resumes it, or reads it if it has already ended.

    A run that stops by itself, because its loss is not finite, is an outcome like any other.
    """
    directory = planned.directory
    reason = directory / STOPPED
    if not reason.exists():
        try:
            result = run(planned.config, quiet=True)
            best = f"{result.best_metric} {result.best_value:.4f} at step {result.best_step}"
            say(f"{directory}: {'best ' if result.trained else 'kept, best '}{best}")
        except TrainingStopped as error:
            write_atomically(reason, f"{error}\n")
            say(f"{directory}: stopped")
    stopped = reason.read_text(encoding="utf-8").strip() if reason.exists() else None
    lines = read_metrics(run_directory.files(directory).metrics)
    split = {s: [line for line in lines if line["split"] == s] for s in ("train", "validation")}
    return Outcome(planned, split["train"], split["validation"], stopped)


def step_memory(planned: Run) -> float:
    """Memory of a compiled step in MiB per device: arguments, results and temporaries, by XLA.

    Unlike the peak of the process, it does not depend on what ran before. Cached in a file.
    """
    path = planned.directory / "memory.json"
    try:
        return float(read_json(path, dict)["step_mebibytes"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # missing or damaged
    parts = build(planned.config)
    step: Any = parts.step
    usage = step.lower(parts.state, parts.batch(0)).compile().memory_analysis()
    every = usage.argument_size_in_bytes + usage.output_size_in_bytes + usage.temp_size_in_bytes
    mebibytes = (every - usage.alias_size_in_bytes) / 2**20
    write_atomically(path, json.dumps({"step_mebibytes": mebibytes}) + "\n")
    return mebibytes


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an experiment in a file.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return dict(stored.items())
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(
            f"{path} is damaged ({one_line(error)}); remove it, and the same command makes it again"
        ) from error


class Parts(NamedTuple):
    """What the training loop builds from a configuration, for code with a loop of its own."""

    task: Task
    state: State
    step: Callable[[State, Tree], tuple[State, dict[str, Any]]]
    batch: Callable[[int], Tree]  # the batch of step k, on the mesh


def build(config: Config) -> Parts:
    """Builds the task, the first state and the step of a configuration."""
    mesh = make_mesh(config.mesh, explicit=config.mesh_axes == "explicit")
    task = config.task(automatic(mesh))
    optimizer, schedule = make_optimizer(
        config.optimizer,
        steps=config.steps,
        matrices=task.matrices,
        shardings=parameter_shardings(task, mesh),
        split=task.split,
        specs=task.query_key,
    )
    state = make_state(task, optimizer, mesh, config.seed)
    step = jit_step(
        state,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        micro_batches=config.micro_batches,
    )
    layout = batch_sharding(mesh)
    return Parts(task, state, step, lambda k: split_batch(task.batches[k], layout))


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of environments; None if it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    known = isinstance(record, dict) and isinstance(record.get("versions", {}), dict)
    return record if known else None


def conditions(directories: list[Path], seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Revision, machine, versions and seeds of all runs in some folders."""
    paths = [run_directory.files(directory).environment for directory in directories]
    lines = [line for path in paths if path.is_file() for line in path.read_bytes().splitlines()]
    found = [record for line in lines if (record := _record(line))]

    def values(name: str) -> str:
        return ", ".join(sorted({str(record.get(name)) for record in found}))

    versions = {f"{k} {v}" for record in found for k, v in record.get("versions", {}).items()}
    return [
        ("revision", values("git_revision")),
        ("devices", values("devices")),
        ("platform", values("platform")),
        ("versions", ", ".join(sorted(versions))),
        ("seeds", ", ".join(map(str, seeds))),
    ]


def clear() -> None:
    """Releases compiled programs, which otherwise accumulate over many runs."""
    jax.clear_caches()
