"""The loss curve of a run, drawn from its metrics file."""

import math
from pathlib import Path

from train.metrics import read_metrics


def draw_loss(metrics_path: Path, picture_path: Path, *, title: str, loss_unit: str) -> None:
    """Draws training and validation loss against steps.

    Args:
        metrics_path: the run's metrics.
        picture_path: where the PNG goes.
        title: above the picture.
        loss_unit: for the label of the axis, "nats/byte".
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for split, label, marker in (
        ("train", "training, a batch", ""),
        ("validation", "validation", "o"),
    ):
        records = [line for line in read_metrics(metrics_path) if line["split"] == split]
        steps = [r["step"] for r in records]
        losses = [math.nan if r["loss"] is None else r["loss"] for r in records]  # a gap
        axes.plot(steps, losses, label=label, marker=marker)
    axes.set(xlabel="optimizer step", ylabel=f"loss ({loss_unit})", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture_path, dpi=150)
