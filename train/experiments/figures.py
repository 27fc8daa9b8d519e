"""Figures of experiments: panels side by side, and lines with their spread."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # to tell lines apart in grey
MARKERS = ("", "o", "s")

#: Names of optimizers in legends.
NAMES = {
    "adamuon": "AdaMuon",
    "adamw": "AdamW",
    "lion": "Lion",
    "mimuon": "MiMuon",
    "muon": "Muon",
    "muon_mvr1": "Muon-MVR1",
    "muon_mvr2": "Muon-MVR2",
    "muonh": "MuonH",
    "musgd": "MuSGD",
    "normuon": "NorMuon",
    "normuonh": "NorMuonH",
    "sgd": "SGD",
    "sgdm": "momentum SGD",
    "shampoo": "Shampoo",
    "soap": "SOAP",
    "soap_muon": "SOAP-Muon",
}


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


def band(axes: Any, x: Any, y: Any, label: str, *, half_width: Any, color: Any = None) -> None:
    """Draws the mean of several lines, and a band around it.

    Args:
        axes: where to draw.
        x: `[points]`.
        y: `[lines, points]`.
        label: for the legend.
        half_width: of the band, `[points]`.
        color: None: the next one.
    """
    mean = np.asarray(y).mean(0)
    colored = {} if color is None else {"color": color}
    (line,) = axes.plot(x, mean, label=label, markersize=4, **colored)
    color = line.get_color()
    axes.fill_between(x, mean - half_width, mean + half_width, alpha=0.2, color=color, linewidth=0)


def legend(*panels: Any, **options: Any) -> None:
    """Adds a legend with readable names, in which curves that coincide share a line.

    Args:
        *panels: axes that show the same optimizers, in the same order. Several of them have one
            legend, beside the figure, in which curves share a line that coincide in every one.
        **options: of matplotlib's legend.
    """
    groups: dict[tuple, list[Any]] = {}
    for lines in zip(*map(_labelled, panels), strict=True):
        points = tuple(np.asarray(line.get_xydata()).tobytes() for line in lines)
        groups.setdefault(points, []).append(lines[0])
    labels = [
        " = ".join(readable(line.get_label()) for line in group)
        + (f": {len(group)} equal curves" if len(group) > 1 else "")
        for group in groups.values()
    ]
    first = [group[0] for group in groups.values()]
    if len(panels) == 1:
        panels[0].legend(first, labels, **options)
    else:
        panels[0].figure.legend(first, labels, loc="outside right upper", **options)


def _labelled(axes: Any) -> list[Any]:
    """The lines of axes that have a label."""
    return [line for line in axes.get_lines() if not line.get_label().startswith("_")]


def ordered_colors(values: Sequence[float]) -> list[Any]:
    """Colours that get lighter with the value, for curves that differ in a number."""
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort(values)) / max(len(values) - 1, 1)
    return [colormaps["viridis"](0.9 * rank) for rank in ranks]


def readable(label: str) -> str:
    """The name of an optimizer as papers write it; other labels stay as they are.

    Example:
        >>> readable("mimuon"), readable("mimuon_gap"), readable("query")
        ('MiMuon', 'MiMuon, gap', 'query')
    """
    known = [name for name in NAMES if f"{label}_".startswith((f"{name}_", f"{name} "))]
    if not known:
        return label
    found = max(known, key=len)
    rest = label[len(found) :]
    if rest.startswith("_"):
        rest = ", " + rest[1:].replace("_", " ")
    return NAMES[found] + rest


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG, and as SVG and PDF beside it."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": path.stem}):  # the same file for the same figure
        figure.savefig(path, dpi=200)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
