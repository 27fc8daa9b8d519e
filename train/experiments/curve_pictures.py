"""Curves of compared runs: means over seeds with their spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.checkpoint_folder import Best
from train.experiments.figures import band, legend, ordered_colors, panels, save
from train.experiments.runs import Outcome
from train.optimizers import MuonMVR2

if TYPE_CHECKING:
    from train.experiments.comparison import Curve

POINTS = 100  # of a training curve; each is a mean over its part of the run

#: Options whose values order curves, in this order.
_ORDERED = ("p", "threshold", "gamma", "learning_rate")


def draw_curve(
    curve: "Curve", chosen: Mapping[str, Sequence[Outcome]], path: Path, *, best: Best
) -> None:
    """Draws one picture: the mean over seeds, with a band of one standard deviation.

    Optimizers that differ in a number have colours in its order. The one that ends best in the
    metric `best` has the widest line.
    """
    figure, (axes,) = panels(1)
    lines = {label: _points(curve, outcomes) for label, outcomes in chosen.items()}
    lines = {label: found for label, found in lines.items() if found is not None}
    values = _values([chosen[label][0].run.config.optimizer for label in lines])
    if values:
        for label, color in zip(lines, ordered_colors(values), strict=True):
            x, y = lines[label]
            band(axes, x, y, label, half_width=_spread(y), color=color)
    else:
        for label, (x, y) in lines.items():
            band(axes, x, y, label, half_width=_spread(y))
    if lines and (curve.split, curve.metric) == ("validation", best[0]):
        ends = [y.mean(0)[-1] for _, y in lines.values()]
        winner = axes.get_lines()[np.argmin(ends) if best[1] == "min" else np.argmax(ends)]
        winner.set(linewidth=3, label=f"{winner.get_label()} (ends best)")
    unit = "optimizer step" if curve.per == "step" else "gradient evaluations (batches)"
    axes.set(xlabel=unit, ylabel=curve.title, yscale="log" if curve.log else "linear")
    if lines:
        legend(axes)
    save(figure, path)


def _points(curve: "Curve", outcomes: Sequence[Outcome]) -> tuple[Any, Any] | None:
    """Steps, and a row of values per seed; None if every run stopped."""
    lines = [o.series(curve.split, curve.metric) for o in outcomes if not o.stopped]
    lines = [_thinned(steps, values) for steps, values in lines if len(steps)]
    if not lines:
        return None
    x, y = lines[0][0], np.stack([values for _, values in lines])
    twice = curve.per == "gradient" and isinstance(outcomes[0].run.config.optimizer, MuonMVR2)
    return 2 * x if twice else x, y


def _spread(y: np.ndarray) -> np.ndarray:
    """The standard deviation over seeds."""
    return y.std(0, ddof=1) if len(y) > 1 else 0 * y[0]


def _values(optimizers: Sequence[Any]) -> list[float]:
    """The number that orders optimizers of one kind; empty without one."""
    if len({type(optimizer) for optimizer in optimizers}) != 1 or len(optimizers) < 3:
        return []
    for name in _ORDERED:
        values = [getattr(optimizer, name, None) for optimizer in optimizers]
        if None not in values and len(set(values)) == len(values):
            return [float(value) for value in values if value is not None]
    return []


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduces a curve to at most `POINTS` points, each the mean of its part of the run."""
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return (
        np.asarray([steps[part].mean() for part in parts]),
        np.asarray([values[part].mean() for part in parts]),
    )
