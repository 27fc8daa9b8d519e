"""Does a gate generalize better than Muon? Gates on a classifier whose labels are partly wrong.

30% of the images have a wrong class in training, so that fitting them costs accuracy on held-out
images. Muon and the gates have the same number of tries. For the same gates on a language model see
`table2`. small: the classifier of `python -m train classify` on handwritten
digits. paper: ResNet-18 on CIFAR-10, as in `python -m train cifar10`.
"""

import dataclasses
from typing import Any

from train.data.labelled import ImageData
from train.experiments import gates
from train.experiments.comparison import Column, Comparison, Curve
from train.presets import cifar10, classify
from train.tasks.classification import Classification

NOISE = 0.3
SMALL = gates.gates(classify.OPTIMIZERS["mimuon"], rms=0.1, gap=1e-3)
PAPER = gates.gates(cifar10.OPTIMIZERS["mimuon"], rms=0.1, gap=1e-3)


def _columns(level: float) -> tuple[Column, ...]:
    """The columns of every study of gates, and the accuracy."""
    accuracy = ("validation", "accuracy")
    return (
        Column("final validation accuracy", *accuracy),
        Column("best validation accuracy", *accuracy, at="best", best="max"),
        Column(f"validation accuracy at training loss {level}", *accuracy, at=level),
        *gates.columns("nats/image", level),
    )


def _noisy(config: Classification, **fields: Any) -> Classification:
    """The configuration with wrong labels, and without augmentation, which hides them."""
    return dataclasses.replace(
        config, data=ImageData(path=config.data.path, label_noise=NOISE), **fields
    )


CURVES = (Curve("validation accuracy", "validation", "accuracy"), *gates.curves("nats/image"))

_ON_DIGITS = Comparison(
    title="Gates of MiMuon on a small classifier, 30% of the labels wrong",
    config=_noisy(classify.CONFIG, preset="gate_classify", steps=400, evaluate_every=40),
    optimizers=SMALL,
    columns=_columns(1.0),
    best=("accuracy", "max"),
    curves=CURVES,
    sweep=gates.MUON_SWEEP,
    sweeps=gates.SWEEPS,
    note=gates.NOTE,
    against=("muon_plain",),
)

SCALES = {
    "small": _ON_DIGITS,
    "paper": dataclasses.replace(
        _ON_DIGITS,
        title="Gates of MiMuon on ResNet-18, CIFAR-10, 30% of the labels wrong",
        config=_noisy(cifar10.CONFIG, preset="gate_classify_paper"),
        optimizers=PAPER,
    ),
}
