"""Figures of experiments: panels side by side, and lines with their spread."""

from pathlib import Path
from typing import Any

import numpy as np


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with axes side by side, each with a grid."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(5.5 * count, 4.2), layout="constrained")
    every = list(np.asarray(figure.subplots(1, count, squeeze=False))[0])
    for axes in every:
        axes.grid(alpha=0.3)
    return figure, every


def band(axes: Any, x: Any, y: Any, label: str, *, half_width: Any) -> None:
    """Draws the mean of several lines, and a band around it.

    Args:
        axes: where to draw.
        x: `[points]`.
        y: `[lines, points]`.
        label: for the legend.
        half_width: of the band, `[points]`.
    """
    mean = np.asarray(y).mean(0)
    axes.plot(x, mean, label=label, marker="o" if len(mean) < 10 else "")
    axes.fill_between(x, mean - half_width, mean + half_width, alpha=0.2)


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=120)
