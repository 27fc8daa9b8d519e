"""Variance reduction, after the Muon-MVR paper: loss and gradient norm against steps and gradients.

small: the classifier of `python -m train classify` on handwritten digits. paper: ResNet-18 on
CIFAR-10 as in `python -m train cifar10`; the paper does not state its settings.
"""

import dataclasses

from train.experiments.comparison import Column, Comparison, Curve
from train.presets import cifar10, classify

NAMES = ("sgdm", "adamw", "muon", "muon_mvr1", "muon_mvr2")

COLUMNS = (
    Column("validation loss (nats)", "validation", "loss"),
    Column("validation accuracy", "validation", "accuracy"),
    Column("training loss (nats)", "train", "loss"),
    Column("gradient norm", "train", "gradient_norm"),
)
CURVES = (
    Curve("training loss (nats)", "train", "loss", log=True),
    Curve("training loss (nats)", "train", "loss", per="gradient", log=True),
    Curve("gradient norm", "train", "gradient_norm", log=True),
    Curve("gradient norm", "train", "gradient_norm", per="gradient", log=True),
    Curve("validation loss (nats)", "validation", "loss", log=True),
)
NOTE = (
    "muon_mvr2 takes two gradients per step: in the curves against gradient evaluations it has "
    "made half as many steps as the others at the same cost."
)

SCALES = {
    "small": Comparison(
        title="Variance reduction on a small classifier (Muon-MVR paper)",
        config=dataclasses.replace(classify.CONFIG, steps=400),
        optimizers={name: classify.OPTIMIZERS[name] for name in NAMES},
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.3,x1,x3",
        note=NOTE,
    ),
    "paper": Comparison(
        title="Variance reduction on ResNet-18, CIFAR-10 (Muon-MVR paper)",
        config=cifar10.CONFIG,
        optimizers={name: cifar10.OPTIMIZERS[name] for name in NAMES},
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.3,x1,x3",
        note=NOTE,
    ),
}
