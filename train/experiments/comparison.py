"""Optimizers compared under one budget: the plan, the runs, and the report."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from train.config import Config
from train.errors import require
from train.experiments.figures import band, panels, save
from train.experiments.runs import Outcome, Run, clear, conditions, step_memory, train
from train.experiments.sweep import Sweep, candidates, parse_sweep
from train.optimizers import MuonMVR2, Optimizer
from train.report import Picture, Report, Table, mean_and_spread

POINTS = 100  # of a training curve; each is a mean over its part of the run


class Column(NamedTuple):
    """A column of the result table: one metric at the end of a run."""

    title: str  # with the unit
    split: Literal["train", "validation"]
    metric: str
    digits: int = 4


class Curve(NamedTuple):
    """A picture: one metric over a run."""

    title: str  # with the unit
    split: Literal["train", "validation"]
    metric: str
    per: Literal["step", "gradient"] = "step"  # what x counts; MVR2 takes two gradients per step
    log: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One scale of an experiment that compares optimizers on one task."""

    title: str
    config: Config
    optimizers: Mapping[str, Optimizer]
    columns: Sequence[Column]
    curves: Sequence[Curve]
    best: tuple[str, Literal["min", "max"]] = ("loss", "min")  # validation metric that selects
    sweep: str | None = None
    first: Sequence[str] | None = None  # of the optimizers, those compared by default; None: all
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the paper's numbers
    paper_title: str = "paper"
    note: str = ""

    def run(
        self,
        directory: Path,
        *,
        seeds: Sequence[int],
        sweep: str | None,
        say: Callable[[str], None],
    ) -> Report:
        """Tries settings with the first seed, then trains each optimizer's best with all seeds."""
        text = self.sweep if sweep is None else sweep
        tried = parse_sweep(text) if text and text != "none" else None
        plans = {
            label: self._plan(label, optimizer, tried, seeds[0], directory)
            for label, optimizer in self.optimizers.items()
        }
        sweeps: dict[str, list[Outcome]] = {}
        chosen: dict[str, list[Outcome]] = {}
        for label, plan in plans.items():
            sweeps[label] = [train(planned, say) for planned in plan]
            best = min(sweeps[label], key=self._rank)
            others = [_with_seed(best.run, seed) for seed in seeds[1:]]
            chosen[label] = [best, *(train(planned, say) for planned in others)]
            step_memory(best.run)
            clear()
        return self._report(directory, chosen, sweeps if tried else {}, tried, seeds)

    def with_optimizers(self, names: Sequence[str] | None) -> Self:
        """The same comparison of some of its optimizers; None: of those compared by default."""
        chosen = names or self.first or list(self.optimizers)
        unknown = [name for name in chosen if name not in self.optimizers]
        require(
            not unknown,
            f"--optimizers: {', '.join(unknown)} is not compared here; choose from "
            f"{', '.join(self.optimizers)}",
        )
        return dataclasses.replace(self, optimizers={n: self.optimizers[n] for n in chosen})

    def with_data(self, **fields: Path) -> Self:
        """The same comparison on other data: new values of fields of the task's `data`."""
        data: Any = vars(self.config)["data"]
        known = {field.name for field in dataclasses.fields(data)}
        require(set(fields) <= known, f"the task's data has no {' or '.join({*fields} - known)}")
        changed: Any = {"data": dataclasses.replace(data, **fields)}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changed))

    def _plan(
        self, label: str, optimizer: Optimizer, sweep: Sweep | None, seed: int, directory: Path
    ) -> list[Run]:
        """The runs of one optimizer with the first seed: one per setting."""
        runs = []
        for setting, variant in candidates(optimizer, sweep).items():
            folder = directory / (f"{label},{setting}" if setting else label) / f"seed-{seed}"
            config = dataclasses.replace(self.config, optimizer=variant, seed=seed, run_dir=folder)
            runs.append(Run(label, setting, seed, config))
        return runs

    def _rank(self, outcome: Outcome) -> float:
        """A key that is smaller for a better run: infinity for one that stopped."""
        name, mode = self.best
        value = outcome.final("validation", name)
        return math.inf if math.isnan(value) else value if mode == "min" else -value

    def _report(
        self,
        directory: Path,
        chosen: dict[str, list[Outcome]],
        sweeps: dict[str, list[Outcome]],
        sweep: Sweep | None,
        seeds: Sequence[int],
    ) -> Report:
        """Tables, pictures, and the conditions under which the runs were made."""
        pictures = []
        for i, curve in enumerate(self.curves):
            path = directory / f"curve-{i + 1}.png"
            _draw(curve, chosen, path)
            pictures.append(Picture(path, curve.title))
        every = [o for outcomes in (*chosen.values(), *sweeps.values()) for o in outcomes]
        _require_same_start(every)
        text = [f"Every optimizer trains for {self.config.steps} steps of {self.config.batch_size}"]
        text[0] += (
            " examples; for each seed all have the same initial weights and the same batches."
        )
        if sweep is not None:
            count = len(sweep.values)
            text.append(
                f"Every optimizer was tried with {count} settings of {sweep.field} and seed "
                f"{seeds[0]}; the setting with the "
                f"{'lowest' if self.best[1] == 'min' else 'highest'} last validation "
                f"{self.best[0]} was trained with all seeds, the first included."
            )
        tables = [self._results(chosen, sweep)]
        tables += [self._tried(sweeps, chosen, sweep)] if sweep else []
        return Report(
            title=self.title,
            text=[*text, self.note] if self.note else text,
            tables=tables,
            pictures=pictures,
            conditions=conditions([o.run.directory for o in every], seeds),
        )

    def _results(self, chosen: dict[str, list[Outcome]], sweep: Sweep | None) -> Table:
        """One row per optimizer: mean and standard deviation over seeds."""
        rows = []
        for label, outcomes in chosen.items():
            ended = [o for o in outcomes if not o.stopped]
            row: list[Any] = [label, _setting(outcomes[0].run, sweep)]
            for column in self.columns:
                values = [o.final(column.split, column.metric) for o in ended]
                values = [value for value in values if not math.isnan(value)]
                row.append(mean_and_spread(values, column.digits) if values else None)
            row.append(f"{len(ended)} of {len(outcomes)}")
            row.append(round(float(np.median([o.step_seconds() for o in outcomes])) * 1e3, 1))
            row.append(round(step_memory(outcomes[0].run), 1))
            rows.append([*row, self.paper.get(label)] if self.paper else row)
        columns = ["optimizer", "setting", *(c.title for c in self.columns)]
        columns += ["runs that finished", "step (ms, median)", "memory per step (MiB per device)"]
        return Table(
            name="results",
            title="Results: mean ± standard deviation over seeds",
            columns=[*columns, self.paper_title] if self.paper else columns,
            rows=rows,
            note="Times depend on what else the machine was doing.",
        )

    def _tried(
        self, sweeps: dict[str, list[Outcome]], chosen: dict[str, list[Outcome]], sweep: Sweep
    ) -> Table:
        """One row per setting that was tried, and which one was chosen."""
        rows = []
        for label, outcomes in sweeps.items():
            for outcome in outcomes:
                value = outcome.final("validation", self.best[0])
                result = "stopped" if outcome.stopped else f"{value:.4f}"
                best = outcome.run == chosen[label][0].run
                setting = _setting(outcome.run, sweep)
                rows.append([label, setting, result, "chosen" if best else ""])
        return Table(
            name="sweep",
            title="Settings tried with the first seed",
            columns=["optimizer", "setting", f"last validation {self.best[0]}", ""],
            rows=rows,
        )


def _with_seed(planned: Run, seed: int) -> Run:
    """The same run with another seed."""
    folder = planned.directory.with_name(f"seed-{seed}")
    config = dataclasses.replace(planned.config, seed=seed, run_dir=folder)
    return planned._replace(seed=seed, config=config)


def _setting(planned: Run, sweep: Sweep | None) -> str:
    """The setting of a run as the report names it: with the value, if several were tried."""
    if sweep is None:
        return "its own"
    value = getattr(planned.config.optimizer, sweep.field)
    return f"{sweep.field}={value:.4g}" + ("" if planned.setting else " (its own)")


def _require_same_start(outcomes: Sequence[Outcome]) -> None:
    """Checks what the report states: all runs of one seed start from the same weights."""
    for seed in {o.run.seed for o in outcomes}:
        first = {o.validation[0]["loss"] for o in outcomes if o.run.seed == seed and o.validation}
        require(
            not first or max(first) - min(first) <= 1e-5 * max(abs(x) for x in first),
            f"runs of seed {seed} start from different losses {sorted(first)}: some were made with "
            "another version of the program or of the data; choose another --run-dir",
        )


def _draw(curve: Curve, chosen: dict[str, list[Outcome]], path: Path) -> None:
    """Draws one picture: the mean over seeds, with a band of one standard deviation."""
    figure, (axes,) = panels(1)
    for label, outcomes in chosen.items():
        lines = [o.series(curve.split, curve.metric) for o in outcomes if not o.stopped]
        lines = [_thinned(steps, values) for steps, values in lines if len(steps)]
        if not lines:
            continue
        x, y = lines[0][0], np.stack([values for _, values in lines])
        if curve.per == "gradient" and isinstance(outcomes[0].run.config.optimizer, MuonMVR2):
            x = 2 * x
        band(axes, x, y, label, half_width=y.std(0, ddof=1) if len(y) > 1 else 0 * y[0])
    unit = "optimizer step" if curve.per == "step" else "gradient evaluations (batches)"
    axes.set(xlabel=unit, ylabel=curve.title, yscale="log" if curve.log else "linear")
    if axes.get_lines():
        axes.legend()
    save(figure, path)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduces a curve to at most `POINTS` points, each the mean of its part of the run."""
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return (
        np.asarray([steps[part].mean() for part in parts]),
        np.asarray([values[part].mean() for part in parts]),
    )
