"""The figures of the stability experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from train.experiments.figures import band, legend, panels, save
from train.experiments.twins import Trajectory

Found: TypeAlias = dict[str, Trajectory]  # `[pair, size, record]`, NumPy, by optimizer


def _band(axes: Any, x: Any, y: Any, label: str) -> None:
    """Draws the mean over pairs, with a band of its standard error."""
    y = np.asarray(y)
    band(axes, x, y, label, half_width=y.std(0) / len(y) ** 0.5)


def _mark_sizes(axes: Any, sizes: Sequence[int]) -> None:
    """Makes the x axis logarithmic, with ticks at the sizes."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def draw_distances(found: Found, steps: Any, sizes: Sequence[int], path: Path) -> None:
    """Draws distance against steps at the largest N, and against N at the last step."""
    figure, (over_steps, over_sizes) = panels(2)
    for name, t in found.items():
        _band(over_steps, steps, t.distance[:, -1], name)
        _band(over_sizes, sizes, t.distance[:, :, -1], name)
    over_steps.set(xlabel="step", ylabel="||W - W'||_F", title=f"N = {sizes[-1]}", yscale="log")
    over_sizes.set(xlabel="training samples N", ylabel="||W - W'||_F", title=f"T = {steps[-1]}")
    over_sizes.set(yscale="log")
    _mark_sizes(over_sizes, sizes)
    legend(over_steps, over_sizes)
    save(figure, path)


def draw_generalization(found: Found, steps: Any, sizes: Sequence[int], path: Path) -> None:
    """Draws the generalization gap against steps and N, and kappa against steps."""
    figure, (over_steps, over_sizes, kappas) = panels(3)
    for name, t in found.items():
        difference = t.held_loss - t.train_loss
        _band(over_steps, steps, difference[:, -1], name)
        _band(over_sizes, sizes, difference[:, :, -1], name)
        kappas.plot(steps, np.median(np.asarray(t.kappa[:, -1]), axis=0), label=name)
    label = "held-out - training loss (nats)"
    over_steps.set(xlabel="step", ylabel=label, title=f"N = {sizes[-1]}")
    over_sizes.set(xlabel="training samples N", ylabel=label, title=f"T = {steps[-1]}")
    _mark_sizes(over_sizes, sizes)
    kappas.set(xlabel="step", ylabel="kappa, median of pairs", title=f"N = {sizes[-1]}")
    kappas.set(yscale="log")
    legend(over_steps, over_sizes, kappas)
    save(figure, path)
