"""Variance reduction, after the Muon-MVR paper: the same comparison as `mvr`, on a language model.

small: the decoder of `python -m train lm` on its text. paper: 134M parameters on C4 as in
`python -m train c4_130m`; the paper does not state its size and settings. gpu: 29M parameters, for
one GPU, never run.
"""

import dataclasses

from train.experiments import overfitting
from train.experiments.comparison import Column, Comparison, Curve
from train.experiments.mvr import NAMES, NOTE
from train.optimizers import SGDM, MuonMVR1, MuonMVR2, Optimizer
from train.presets import c4_130m, lm

SMALL: dict[str, Optimizer] = {
    "sgdm": SGDM(learning_rate=0.1),
    "adamw": lm.OPTIMIZERS["adamw"],
    "muon": lm.OPTIMIZERS["muon"],
    "muon_mvr1": MuonMVR1(learning_rate=0.02, auxiliary_learning_rate=5e-3),
    "muon_mvr2": MuonMVR2(learning_rate=0.02, auxiliary_learning_rate=5e-3),
}

COLUMNS = (
    Column("validation loss (nats/token)", "validation", "loss"),
    Column("training loss (nats/token)", "train", "loss"),
    Column("gradient norm", "train", "gradient_norm"),
)
CURVES = (
    Curve("training loss (nats/token)", "train", "loss"),
    Curve("training loss (nats/token)", "train", "loss", per="gradient"),
    Curve("gradient norm", "train", "gradient_norm", log=True),
    Curve("gradient norm", "train", "gradient_norm", per="gradient", log=True),
    Curve("validation loss (nats/token)", "validation", "loss"),
)

SCALES = {
    "small": Comparison(
        title="Variance reduction on a small decoder (Muon-MVR paper)",
        config=dataclasses.replace(lm.CONFIG, preset="mvr_lm", steps=150),
        optimizers=SMALL,
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.3,x1,x3",
        note=NOTE,
    ),
    "gpu": Comparison(
        title="Variance reduction on a decoder of 29M parameters (Muon-MVR paper)",
        config=overfitting.named(overfitting.GPU, "mvr_lm_gpu"),
        optimizers=SMALL,
        columns=COLUMNS,
        curves=CURVES,
        note=NOTE,
    ),
    "paper": Comparison(
        title="Variance reduction on a decoder of 134M parameters, C4 (Muon-MVR paper)",
        config=c4_130m.CONFIG,
        optimizers={name: c4_130m.OPTIMIZERS[name] for name in NAMES},
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.3,x1,x3",
        note=NOTE,
    ),
}
