"""The curves of a run, drawn from its metrics file."""

import math
from pathlib import Path
from typing import Any

from train.files import replacing
from train.metrics import read_metrics

OFF_SCALE = 3.0  # times the largest training loss; before training, BatchNorm may give any loss


def draw_curves(
    metrics_path: Path, picture_path: Path, *, title: str, loss_unit: str, best: str
) -> None:
    """Draws training and validation loss against steps, and the metric of the best checkpoint.

    Args:
        metrics_path: the run's metrics.
        picture_path: the PNG to write.
        title: title of the picture.
        loss_unit: unit for the label of the axis, such as "nats/byte".
        best: the validation metric that chooses the best checkpoint; unless it is "loss", it gets
            its own picture.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    records = read_metrics(metrics_path)
    split = {s: [r for r in records if r["split"] == s] for s in ("train", "validation")}
    figure = Figure(figsize=(7 if best == "loss" else 12, 4.5), layout="constrained")
    figure.suptitle(title, parse_math=False)  # a name may have a $
    axes = figure.add_subplot(1, 1 if best == "loss" else 2, 1)
    axes.plot(*_line(split["train"], "loss"), label="training, per batch")
    steps, losses = _line(split["validation"], "loss")
    finite = [x for x in _line(split["train"], "loss")[1] if not math.isnan(x)]
    top = OFF_SCALE * max(finite, default=math.inf)
    off = sum(loss > top for loss in losses)
    shown = [math.nan if loss > top else loss for loss in losses]
    label = f"validation ({off} above {top:.3g} left out)" if off else "validation"
    axes.plot(steps, shown, label=label, marker="o")
    axes.legend()
    every = [(axes, f"loss ({loss_unit})")]
    if best != "loss":
        other = figure.add_subplot(1, 2, 2)
        other.plot(*_line(split["validation"], best), marker="o", color="tab:orange")
        every.append((other, f"validation {best}"))
    for one, name in every:
        one.set(xlabel="optimizer step", ylabel=name)
        one.grid(alpha=0.3)
    with replacing(picture_path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _line(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values; a missing value (null) is a gap."""
    found = [r for r in records if name in r]
    return [r["step"] for r in found], [math.nan if r[name] is None else r[name] for r in found]
