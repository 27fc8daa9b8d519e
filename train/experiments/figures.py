"""Figures of experiments: panels side by side, and lines with their spread."""

from pathlib import Path
from typing import Any

import numpy as np

LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # to tell lines apart in grey
MARKERS = ("", "o", "s")


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with axes side by side, each with a grid."""
    from cycler import cycler
    from matplotlib import color_sequences
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    colors = cycler(color=color_sequences["tab10"])
    styles = cycler(marker=MARKERS, markevery=[1, 0.1, 0.1]) * cycler(linestyle=LINES)

    figure = Figure(figsize=(5.5 * count, 4.2), layout="constrained")
    every = list(np.asarray(figure.subplots(1, count, squeeze=False))[0])
    for axes in every:
        axes.grid(alpha=0.3)
        axes.set_prop_cycle(colors + styles[:10])
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
    (line,) = axes.plot(x, mean, label=label, markersize=4)
    color = line.get_color()
    axes.fill_between(x, mean - half_width, mean + half_width, alpha=0.2, color=color, linewidth=0)


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=200)
