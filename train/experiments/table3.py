"""Table 3 of the MiMuon paper: six optimizers train a YOLO26 detector from scratch; fitness.

small: the detector of `python -m train detect` on scenes of handwritten digits. paper: YOLO26m on
Pascal VOC, as in `python -m train yolo26m_voc`.
"""

import dataclasses
from typing import Any

from train.experiments.comparison import Column, Comparison, Curve
from train.optimizers import AdamW, Lion, MiMuon, Muon, MuSGD, Optimizer, Shampoo
from train.presets import detect, yolo26m_voc

PAPER = {
    "adamw": 0.197,
    "lion": 0.206,
    "shampoo": 0.376,
    "muon": 0.402,
    "musgd": 0.427,
    "mimuon": 0.461,
}


_EVERY: dict[str, Any] = {"clip_norm": 10.0}
_BESIDE: dict[str, Any] = _EVERY | {"auxiliary_learning_rate": 3e-3, "weight_decay": 0.01}

SMALL: dict[str, Optimizer] = {
    "adamw": AdamW(learning_rate=3e-3, weight_decay=0.05, **_EVERY),
    "lion": Lion(learning_rate=3e-4, weight_decay=0.1, **_EVERY),
    "shampoo": Shampoo(learning_rate=0.02, update_every=20, **_BESIDE),
    "muon": Muon(learning_rate=0.02, **_BESIDE),
    "musgd": MuSGD(
        learning_rate=0.02, muon_weight=0.7, sgd_weight=0.4, weight_decay=5e-4, **_EVERY
    ),
    "mimuon": MiMuon(learning_rate=0.02, threshold=0.01, **_BESIDE),
}

COLUMNS = (
    Column("fitness", "validation", "fitness"),
    *(
        Column(f"{name}, {split}", split, name, digits=3)
        for split in ("train", "validation")
        for name in ("box", "cls", "dfl")
    ),
)
CURVES = (
    Curve("fitness", "validation", "fitness"),
    Curve("sum of box, cls and dfl, validation", "validation", "loss"),
    Curve("sum of box, cls and dfl, training", "train", "loss"),
)
SCALES = {
    "small": Comparison(
        title="Six optimizers on a small YOLO26 (MiMuon paper, table 3)",
        config=dataclasses.replace(detect.CONFIG, steps=150, evaluate_every=50),
        optimizers=SMALL,
        columns=COLUMNS,
        curves=CURVES,
        best=("fitness", "max"),
        sweep="learning_rate=x0.3,x1,x3",
        paper=PAPER,
        paper_title="paper, YOLO26m on VOC (fitness)",
        note="The paper's numbers are for another size and data: only the order can be compared.",
    ),
    "paper": Comparison(
        title="Six optimizers on YOLO26m, Pascal VOC (MiMuon paper, table 3)",
        config=yolo26m_voc.CONFIG,
        optimizers={name: yolo26m_voc.OPTIMIZERS[name] for name in PAPER},
        columns=COLUMNS,
        curves=CURVES,
        best=("fitness", "max"),
        paper=PAPER,
        paper_title="paper (fitness)",
    ),
}
