"""A small residual network on scikit-learn's handwritten digits, 8x8 pixels.

A classifier with BatchNorm and convolutions, end to end, without a download. It does not reproduce
a paper; it stands in for the Muon-MVR paper's image classifier at small scale.

Command: python -m train classify
Device: anything; two CPU cores are enough.
"""

from train.data.labelled import ImageData
from train.optimizers import SGDM, AdamW, MiMuon, Muon, MuonMVR1, MuonMVR2
from train.tasks.classification import Classification

OPTIMIZERS = {
    "mimuon": MiMuon(auxiliary_learning_rate=3e-3),
    "muon": Muon(auxiliary_learning_rate=3e-3),
    "muon_mvr1": MuonMVR1(auxiliary_learning_rate=3e-3),
    "muon_mvr2": MuonMVR2(auxiliary_learning_rate=3e-3),
    "adamw": AdamW(learning_rate=3e-3),
    "sgdm": SGDM(learning_rate=0.05, weight_decay=5e-4),
}

CONFIG = Classification(
    preset="classify",
    steps=300,
    batch_size=64,
    evaluate_every=50,
    data=ImageData(shift=1),
    optimizer=OPTIMIZERS["mimuon"],
)
