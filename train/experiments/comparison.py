"""Optimizers compared under one budget: the plan, the runs, and the report."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np

from train.config import Config
from train.errors import require
from train.experiments.curve_pictures import draw_curve
from train.experiments.paired import paired_differences
from train.experiments.runs import Outcome, Run, clear, conditions, step_memory, train
from train.experiments.sweep import Sweep, candidates, parse_sweeps
from train.optimizers import Optimizer
from train.report import Picture, Report, Table, mean_and_spread

Sweeps: TypeAlias = tuple[Sweep, ...]  # of one optimizer; empty: only its own settings


class Column(NamedTuple):
    """A column of the result table: one metric at one time of a run."""

    title: str  # with the unit
    split: Literal["train", "validation", "gap"]  # gap: validation - training
    metric: str
    digits: int = 4
    at: Literal["end", "best", "mean"] | float = "end"  # a number: the training loss first reached
    best: Literal["min", "max"] = "min"  # of the evaluations

    def value(self, outcome: Outcome) -> float:
        """The value for a run; NaN if there is none."""
        if self.at == "end":
            return outcome.final(self.split, self.metric)
        if self.at == "best":
            return outcome.best(self.metric, self.best)
        if self.at == "mean":
            return outcome.mean(self.split, self.metric)
        return outcome.at_training_loss(self.at, self.metric)


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
    sweeps: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # other than `sweep`, by name
    first: Sequence[str] | None = None  # of the optimizers, those compared by default; None: all
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the paper's numbers
    paper_title: str = "paper"
    note: str = ""
    against: Sequence[str] = ()  # optimizers that the others are subtracted from, seed by seed

    def run(
        self,
        directory: Path,
        *,
        seeds: Sequence[int],
        sweep: str | None,
        say: Callable[[str], None],
    ) -> Report:
        """Tries settings with the first seed, then trains each optimizer's best with all seeds."""
        tried = {label: self._tries(label, sweep) for label in self.optimizers}
        plans = {
            label: self._plan(label, optimizer, tried[label], seeds[0], directory)
            for label, optimizer in self.optimizers.items()
        }
        counts = {label: len(plan) for label, plan in plans.items()}
        require(
            len(set(counts.values())) <= 1, f"optimizers have different numbers of tries: {counts}"
        )
        sweeps: dict[str, list[Outcome]] = {}
        chosen: dict[str, list[Outcome]] = {}
        for label, plan in plans.items():
            sweeps[label] = [train(planned, say) for planned in plan]
            best = min(sweeps[label], key=self._rank)
            others = [_with_seed(best.run, seed) for seed in seeds[1:]]
            chosen[label] = [best, *(train(planned, say) for planned in others)]
            step_memory(best.run)
            clear()
        return self._report(directory, chosen, sweeps if any(tried.values()) else {}, tried, seeds)

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

    def _tries(self, label: str, sweep: str | None) -> Sweeps:
        """The options of an optimizer that are swept; a given sweep replaces the experiment's."""
        text = self.sweeps.get(label, self.sweep) if sweep is None else sweep
        return parse_sweeps(text) if text and text != "none" else ()

    def _plan(
        self, label: str, optimizer: Optimizer, tried: Sweeps, seed: int, directory: Path
    ) -> list[Run]:
        """The runs of one optimizer with the first seed: one per setting."""
        runs = []
        for setting, variant in candidates(optimizer, tried).items():
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
        tried: Mapping[str, Sweeps],
        seeds: Sequence[int],
    ) -> Report:
        """Tables, pictures, and the conditions under which the runs were made."""
        pictures = []
        for i, curve in enumerate(self.curves):
            path = directory / f"curve-{i + 1}.png"
            draw_curve(curve, chosen, path, best=self.best)
            pictures.append(Picture(path, curve.title))
        every = [o for outcomes in (*chosen.values(), *sweeps.values()) for o in outcomes]
        _require_same_start(every)
        text = [f"Every optimizer trains for {self.config.steps} steps of {self.config.batch_size}"]
        text[0] += (
            " examples; for each seed all have the same initial weights and the same batches."
        )
        if sweeps:
            text.append(self._how_tried(sweeps, tried, seeds[0]))
        tables = [self._results(chosen, tried)]
        columns = [column for column in self.columns if column.metric != "gate_rate"]
        others = [label for label in self.against if label in chosen]
        tables += [paired_differences(chosen, columns, label) for label in others]
        tables += [self._tried(sweeps, chosen, tried)] if sweeps else []
        return Report(
            title=self.title,
            text=[*text, self.note] if self.note else text,
            tables=tables,
            pictures=pictures,
            conditions=conditions([o.run.directory for o in every], seeds),
        )

    def _how_tried(
        self, sweeps: dict[str, list[Outcome]], tried: Mapping[str, Sweeps], seed: int
    ) -> str:
        """One paragraph: how many settings of what were tried, and which one was chosen."""
        count = len(next(iter(sweeps.values())))
        fields = {label: " and ".join(sweep.field for sweep in tried[label]) for label in sweeps}
        of = "; ".join(
            f"{field} ({', '.join(label for label in fields if fields[label] == field)})"
            for field in dict.fromkeys(fields.values())
        )
        return (
            f"Every optimizer was tried with {count} settings and seed {seed}, of "
            f"{of if len(set(fields.values())) > 1 else next(iter(fields.values()))}; the setting "
            f"with the {'lowest' if self.best[1] == 'min' else 'highest'} last validation "
            f"{self.best[0]} was trained with all seeds, the first included."
        )

    def _results(self, chosen: dict[str, list[Outcome]], tried: Mapping[str, Sweeps]) -> Table:
        """One row per optimizer: mean and standard deviation over seeds."""
        rows = []
        for label, outcomes in chosen.items():
            ended = [o for o in outcomes if not o.stopped]
            row: list[Any] = [label, _setting(outcomes[0].run, tried[label])]
            for column in self.columns:
                values = [column.value(o) for o in ended]
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
        self,
        sweeps: dict[str, list[Outcome]],
        chosen: dict[str, list[Outcome]],
        tried: Mapping[str, Sweeps],
    ) -> Table:
        """One row per setting that was tried: its last evaluation, and which one was chosen."""
        last = {c.metric: c for c in self.columns if (c.split, c.at) == ("validation", "end")}
        names, rows = list(dict.fromkeys([self.best[0], *last])), []
        for label, outcomes in sweeps.items():
            for outcome in outcomes:
                values = [outcome.final("validation", name) for name in names]
                results = ["stopped" if outcome.stopped else f"{value:.4f}" for value in values]
                best = "chosen" if outcome.run == chosen[label][0].run else ""
                rows.append([label, _setting(outcome.run, tried[label]), *results, best])
        return Table(
            name="sweep",
            title="Settings tried with the first seed",
            columns=["optimizer", "setting", *(f"last validation {name}" for name in names), ""],
            rows=rows,
        )


def _with_seed(planned: Run, seed: int) -> Run:
    """The same run with another seed."""
    folder = planned.directory.with_name(f"seed-{seed}")
    config = dataclasses.replace(planned.config, seed=seed, run_dir=folder)
    return planned._replace(seed=seed, config=config)


def _setting(planned: Run, tried: Sweeps) -> str:
    """The setting of a run as the report names it: with the values, if several were tried."""
    if not tried:
        return "its own"
    values = {sweep.field: getattr(planned.config.optimizer, sweep.field) for sweep in tried}
    named = ", ".join(f"{field}={value:.4g}" for field, value in values.items())
    return named + ("" if planned.setting else " (its own)")


def _require_same_start(outcomes: Sequence[Outcome]) -> None:
    """Checks what the report states: all runs of one seed start from the same weights."""
    for seed in {o.run.seed for o in outcomes}:
        first = {o.validation[0]["loss"] for o in outcomes if o.run.seed == seed and o.validation}
        require(
            not first or max(first) - min(first) <= 1e-5 * max(abs(x) for x in first),
            f"runs of seed {seed} start from different losses {sorted(first)}: some were made with "
            "another version of the program or of the data; choose another --run-dir",
        )
