"""What MiMuon's gate does: which measure makes MiMuon differ from Muon and from momentum SGD.

A decoder is trained with every measure at the paper's threshold, with Muon (threshold 0) and with
momentum SGD (threshold inf). Along three of these runs all measures of all momenta are recorded,
which gives the share of open gates for every threshold, kind of matrix and time.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from mimuon_jax.linalg.measures import MEASURES
from train.config import Config
from train.experiments import overfitting
from train.experiments.comparison import Column, Comparison, Curve
from train.experiments.figures import legend, panels, save
from train.experiments.spectra import Spectra, spectra
from train.optimizers import MiMuon, Optimizer
from train.presets import lm, qwen3_0_6b_wikitext103
from train.report import Picture, Report, Table

THRESHOLDS = (0.005, 0.01)  # the paper's, for the language model and the detector
RANGE = np.logspace(-8, 2, 101)  # thresholds in the figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One scale of the experiment."""

    comparison: Comparison
    along: Sequence[str]  # optimizers of the comparison whose momenta are measured
    records: int = 40

    def run(
        self,
        directory: Path,
        *,
        seeds: Sequence[int],
        sweep: str | None,
        say: Callable[[str], None],
    ) -> Report:
        """Compares the optimizers, measures along some runs, and reports both."""
        report = self.comparison.run(directory, seeds=seeds, sweep=sweep, say=say)
        found = {}
        for label in self.along:
            say(f"{directory}: measuring along {label}")
            config = dataclasses.replace(
                self.comparison.config,
                optimizer=self.comparison.optimizers[label],
                seed=seeds[0],
            )
            found[label] = spectra(config, directory / f"spectra-{label}.npz", records=self.records)
        pictures = [_draw(label, s, directory / f"gate-{label}.png") for label, s in found.items()]
        tables = [_rates(found), *(_kinds(label, s) for label, s in found.items())]
        return report._replace(
            tables=[*report.tables, *tables], pictures=[*report.pictures, *pictures]
        )

    def with_data(self, **fields: Path) -> Self:
        """The same experiment on other data."""
        return dataclasses.replace(self, comparison=self.comparison.with_data(**fields))


def _rates(found: Mapping[str, Spectra]) -> Table:
    """Share of open gates by run and measure, at the paper's thresholds, early and late."""
    rows = []
    for label, s in found.items():
        quarter = max(len(s.steps) // 4, 1)
        for measure in MEASURES:
            rates = [s.open_rate(measure, threshold) for threshold in THRESHOLDS]
            parts = [
                float(x.mean()) for rate in rates for x in (rate, rate[:quarter], rate[-quarter:])
            ]
            median = float(np.median(s.values[measure]))
            rows.append([f"{label}, {measure}", *parts, median])
    times = ("", ", first quarter", ", last quarter")
    return Table(
        name="open_rate",
        title="Share of open gates along a run",
        columns=[
            "run, measure",
            *(f"tau = {threshold}{time}" for threshold in THRESHOLDS for time in times),
            "median of the measure",
        ],
        rows=rows,
        note="1: MiMuon would be Muon. 0: it would be momentum SGD. First seed only.",
    )


def _kinds(label: str, s: Spectra) -> Table:
    """Share of open gates by kind of matrix and measure, at the language model's threshold."""
    rows = [
        [of, *(float(s.open_rate(measure, THRESHOLDS[0], of).mean()) for measure in MEASURES)]
        for of in s.kinds()
    ]
    return Table(
        name=f"open_rate_by_kind_{label}",
        title=f"Share of open gates by kind of matrix, tau = {THRESHOLDS[0]}, along {label}",
        columns=["kind", *MEASURES],
        rows=rows,
    )


def _draw(label: str, s: Spectra, path: Path) -> Picture:
    """Draws open gates against thresholds, over the run, and by kind for the default measure."""
    figure, (over_thresholds, over_steps, by_kind) = panels(3)
    for measure in MEASURES:
        rates = [s.open_rate(measure, threshold).mean() for threshold in RANGE]
        over_thresholds.plot(RANGE, rates, label=measure)
        over_steps.plot(s.steps, s.open_rate(measure, THRESHOLDS[0]), label=measure)
    for threshold in THRESHOLDS:
        over_thresholds.axvline(threshold, color="gray", linestyle=":")
    for of in s.kinds():
        by_kind.plot(s.steps, s.open_rate("rms", THRESHOLDS[0], of), label=of)
    over_thresholds.set(xscale="log", xlabel="threshold tau (unit of the momentum)")
    over_thresholds.set(ylabel="share of open gates", title="mean over the run")
    over_steps.set(xlabel="optimizer step", ylabel="share of open gates")
    over_steps.set(title=f"tau = {THRESHOLDS[0]}")
    by_kind.set(xlabel="optimizer step", ylabel="share of open gates")
    by_kind.set(title=f"measure rms, tau = {THRESHOLDS[0]}")
    for axes in (over_thresholds, over_steps, by_kind):
        axes.set_ylim(-0.03, 1.03)
        legend(axes, fontsize=8)
    save(figure, path)
    return Picture(path, f"Gate along {label}; dotted: the paper's thresholds")


def _optimizers(tuned: MiMuon) -> dict[str, Optimizer]:
    """Muon, momentum SGD and MiMuon with every measure, otherwise equal."""
    gated: dict[str, Optimizer] = {
        f"mimuon_{measure}": dataclasses.replace(tuned, measure=measure) for measure in MEASURES
    }
    ends = {"muon": 0.0, "sgdm": math.inf}
    return {n: dataclasses.replace(tuned, threshold=tau) for n, tau in ends.items()} | gated


def _gate(config: Config, tuned: MiMuon, title: str) -> Gate:
    """The experiment on a language model."""
    return Gate(
        comparison=Comparison(
            title=title,
            config=config,
            optimizers=_optimizers(tuned),
            columns=(
                Column("validation loss (nats/token)", "validation", "loss"),
                Column("training loss (nats/token)", "train", "loss"),
                Column("open gates, last tenth", "train", "gate_rate", digits=3),
            ),
            curves=(
                Curve("validation loss (nats/token)", "validation", "loss"),
                Curve("share of open gates", "train", "gate_rate"),
            ),
            note=(
                "muon and sgdm are MiMuon with thresholds 0 and inf; all have the same learning "
                "rate and decay."
            ),
        ),
        along=("muon", "mimuon_rms", "sgdm"),
    )


SCALES = {
    "small": _gate(
        lm.CONFIG, lm.OPTIMIZERS["mimuon"], "MiMuon's gate on a small decoder, tau = 0.005"
    ),
    "gpu": _gate(
        overfitting.named(overfitting.GPU, "gate_gpu"),
        lm.OPTIMIZERS["mimuon"],
        "MiMuon's gate on a decoder of 29M parameters, tau = 0.005",
    ),
    "paper": _gate(
        qwen3_0_6b_wikitext103.CONFIG,
        qwen3_0_6b_wikitext103.OPTIMIZERS["mimuon"],
        "MiMuon's gate on Qwen3-0.6B, tau = 0.005",
    ),
}
