"""Optimizers compared by the steps that they take to a loss, with a rule for significance."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.errors import require
from train.experiments.comparison import Comparison, Sweeps
from train.experiments.runs import Outcome
from train.report import Report, Table, mean_and_spread

DEVIATIONS = 3.09  # of a standard normal: one chance in a thousand beyond


class Race(NamedTuple):
    """Validation losses of every optimizer, `[seeds, evaluations]`; inf after a run stopped."""

    steps: np.ndarray  # of the evaluations
    losses: Mapping[str, np.ndarray]
    target: float
    bar: float  # on (difference of means) sqrt(n)

    def reached(self, label: str) -> int | None:
        """The first evaluated step at which `(target - mean) sqrt(n) >= bar`; None: never."""
        losses = self.losses[label]
        margin = (self.target - losses.mean(0)) * math.sqrt(len(losses))
        # What the bar was computed from may differ from it by a rounding.
        (passed,) = np.nonzero(margin >= self.bar * (1 - 1e-9))
        return int(self.steps[passed[0]]) if passed.size else None

    def beats(self, label: str, other: str) -> bool:
        """Whether the last losses of an optimizer are lower than another's, beyond chance."""
        one, two = self.losses[label][:, -1], self.losses[other][:, -1]
        if not np.all(np.isfinite(one)):
            return False
        return bool(two.mean() - one.mean() >= self.bar * math.sqrt(1 / len(one) + 1 / len(two)))


def race(
    losses: Mapping[str, np.ndarray], steps: np.ndarray, target: float | None, of: str
) -> Race:
    """Measures the standard deviation, and from it the bar and the target.

    Args:
        losses: `[seeds, evaluations]` by optimizer.
        steps: of the evaluations.
        target: loss to reach; None: what the optimizer `of` passes at its last step.
        of: the reference.

    Example:
        >>> losses = {"muon": np.asarray([[2.0, 1.51], [2.0, 1.49]])}
        >>> found = race(losses, np.asarray([0, 10]), None, "muon")
        >>> round(found.bar, 4), round(found.target, 4), found.reached("muon")
        (0.0437, 1.5309, 10)
    """
    last = [x[:, -1] for x in losses.values() if len(x) > 1 and np.all(np.isfinite(x[:, -1]))]
    deviation = math.sqrt(np.mean([x.var(ddof=1) for x in last])) if last else math.nan
    bar = DEVIATIONS * deviation
    if target is None:
        target = float(losses[of][:, -1].mean() + bar / math.sqrt(len(losses[of])))
    return Race(steps, losses, target, bar)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speedrun(Comparison):
    """One scale of a comparison by the steps to a validation loss."""

    target: float | None = None  # None: what the reference reaches
    reference: str = "muon"

    def run(
        self,
        directory: Path,
        *,
        seeds: Sequence[int],
        sweep: str | None,
        say: Callable[[str], None],
    ) -> Report:
        """As for every comparison; the standard deviation needs two seeds."""
        require(len(seeds) > 1, "the bar for significance needs --seeds 2 or more")
        require(
            self.reference in self.optimizers,
            f"--optimizers must have {self.reference}, which the others are compared with",
        )
        return super().run(directory, seeds=seeds, sweep=sweep, say=say)

    def _report(
        self,
        directory: Path,
        chosen: dict[str, list[Outcome]],
        sweeps: dict[str, list[Outcome]],
        tried: Mapping[str, Sweeps],
        seeds: Sequence[int],
    ) -> Report:
        """The report of the comparison, headed by the steps to the target."""
        report = super()._report(directory, chosen, sweeps, tried, seeds)
        steps, losses = _losses(chosen)
        found = race(losses, steps, self.target, self.reference)
        source = "given" if self.target is not None else f"what {self.reference} passes at its end"
        text = (
            f"The target is a validation loss of {found.target:.4f}, {source}. An optimizer has "
            "reached it where (target - mean) sqrt(n) >= bar over its n seeds; the bar is "
            f"{found.bar:.4f}, {DEVIATIONS} standard deviations of a last loss over seeds, pooled "
            "over optimizers. Learning rates fall to the end of the run, so a shorter run would do "
            "better at its end than these do at that step."
        )
        return report._replace(
            text=[text, *report.text], tables=[_table(found, self.reference), *report.tables]
        )


def _losses(chosen: Mapping[str, list[Outcome]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps of the evaluations, and the losses of every optimizer's runs."""
    series = {
        label: [o.series("validation", "loss") for o in outcomes]
        for label, outcomes in chosen.items()
    }
    steps = max((s for runs in series.values() for s, _ in runs), key=len)
    padded = {}
    for label, runs in series.items():
        padded[label] = np.full((len(runs), len(steps)), np.inf)
        for i, (_, values) in enumerate(runs):
            whole = not chosen[label][i].stopped
            padded[label][i, : len(values)] = np.where(np.isfinite(values), values, np.inf)
            padded[label][i, -1] = padded[label][i, -1] if whole else np.inf
    return steps, padded


def _table(found: Race, reference: str) -> Table:
    """One row per optimizer: its steps, its last losses, and whether it beats the reference."""
    base, rows = found.reached(reference), []
    for label, losses in found.losses.items():
        reached, last = found.reached(label), losses[:, -1]
        finite = last[np.isfinite(last)].tolist()
        verdict = "reference"
        if label != reference:
            verdict = "yes" if found.beats(label, reference) else "no"
            verdict += ", worse" if found.beats(reference, label) else ""
        rows.append(
            [
                label,
                "not reached" if reached is None else reached,
                None if None in (reached, base) else f"{reached / base:.0%}",  # type: ignore
                mean_and_spread(finite, 4) if finite else None,
                len(last),
                f"{(found.target - last.mean()) * math.sqrt(len(last)):.4f}",
                verdict,
            ]
        )
    return Table(
        name="steps",
        title="Steps to the target",
        columns=[
            "optimizer",
            "steps to the target",
            f"of {reference}'s",
            "last validation loss",
            "seeds",
            "(target - mean) sqrt(n)",
            f"beats {reference}",
        ],
        rows=rows,
        note=f"Evaluations are {int(found.steps[-1] - found.steps[-2])} steps apart. An optimizer "
        f"beats {reference} if its last losses are lower by the bar times sqrt(1/n + 1/m).",
    )
