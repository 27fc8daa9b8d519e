"""An evaluation for readers: a table of the classes, and their precision-recall curves."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from train.detection.average_precision import RECALLS, Evaluation
from train.fonts import label_of

MOST_LINES = 10  # with more classes, only the curve of their mean has a label


def class_table(evaluation: Evaluation, names: Sequence[str]) -> str:
    """A line for all classes and one for each class that has objects: precision, recall, AP.

    Args:
        evaluation: of a held-out set.
        names: of the classes, by label.

    Returns:
        Aligned columns, and a line with the number of false positives; without a final line end.
        Precision, recall and false positives are those at the confidence where F1 is best.
    """
    all_of_them = evaluation.summary()
    rows = [
        ("all", evaluation.objects.sum(), *list(all_of_them.values())[:4]),
        *(
            (names[kind], count, p, r, average[0], average.mean())
            for kind, count, p, r, average in zip(
                evaluation.classes,
                evaluation.objects,
                evaluation.precision,
                evaluation.recall,
                evaluation.average_precision,
                strict=True,
            )
        ),
    ]
    width = max(len("class"), *(_width(row[0]) for row in rows))
    header = f"{'class':<{width}} objects precision recall  AP50 AP50-95"
    lines = [
        name + " " * (width - _width(name)) + f" {count:>7} {p:>9.3f} {r:>6.3f} {a:>5.3f} {b:>7.3f}"
        for name, count, p, r, a, b in rows
    ]
    wrong, confidence = evaluation.false_positives, evaluation.confidence
    return "\n".join([header, *lines, f"false positives: {wrong} at confidence {confidence:.3f}"])


def _width(name: str) -> int:
    """Columns that a name takes in a terminal: East Asian characters take two."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in name)


def draw_curves(evaluation: Evaluation, names: Sequence[str], path: Path) -> None:
    """Draws precision against recall at IoU 0.5, for every class and for their mean.

    Args:
        evaluation: of a held-out set.
        names: of the classes, by label.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    few = len(evaluation.classes) <= MOST_LINES
    for kind, curve, average in zip(
        evaluation.classes, evaluation.curves, evaluation.average_precision, strict=True
    ):
        label = f"{label_of(names[int(kind)], int(kind))} {average[0]:.3f}" if few else None
        axes.plot(RECALLS, curve, linewidth=1, color=None if few else "silver", label=label)
    mean = evaluation.curves.sum(0) / max(len(evaluation.classes), 1)
    label = f"all {evaluation.summary()['map50']:.3f}"
    axes.plot(RECALLS, mean, linewidth=3, color="black", label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_title("precision and recall at IoU 0.5")
    axes.grid(alpha=0.3)
    for text in axes.legend(title="AP50", loc="lower left").get_texts():
        text.set_parse_math(False)  # a name may have a $
    figure.savefig(path, dpi=150)
