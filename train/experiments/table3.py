"""Table 3 of the MiMuon paper: six optimizers train a YOLO26 detector from scratch; fitness.

small: the detector of `python -m train detect` on scenes of handwritten digits (or on a VOC-layout
folder given with --data). paper: YOLO26m on Pascal VOC at 640 pixels, batch 32, 500 warm-up steps,
cosine, the paper's learning rates, thresholds and weights; its decays and length are not in its
text.
"""

import dataclasses

from train.experiments.comparison import Column, Comparison, Curve
from train.optimizers import AdamW, Lion, MiMuon, Muon, MuSGD, Optimizer, Shampoo
from train.presets import detect
from train.tasks.detection import Detection, Detector

PAPER = {
    "adamw": 0.197,
    "lion": 0.206,
    "shampoo": 0.376,
    "muon": 0.402,
    "musgd": 0.427,
    "mimuon": 0.461,
}


def optimizers(warmup_steps: int | None, auxiliary: float) -> dict[str, Optimizer]:
    """The six, with the paper's settings where its text has them.

    Args:
        warmup_steps: of the run; None: a tenth of it.
        auxiliary: learning rate of Adam beside Muon and Shampoo.
    """
    every = {"warmup_steps": warmup_steps, "clip_norm": 10.0}
    beside = {**every, "auxiliary_learning_rate": auxiliary, "weight_decay": 0.01}
    return {
        "adamw": AdamW(learning_rate=3e-3, weight_decay=0.05, **every),
        "lion": Lion(learning_rate=3e-4, weight_decay=0.1, **every),
        "shampoo": Shampoo(learning_rate=0.02, update_every=20, **beside),
        "muon": Muon(learning_rate=0.02, **beside),
        "musgd": MuSGD(
            learning_rate=0.02, muon_weight=0.7, sgd_weight=0.4, weight_decay=5e-4, **every
        ),
        "mimuon": MiMuon(learning_rate=0.02, threshold=0.01, **beside),
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
PAPER_CONFIG = Detection(
    preset="table3",
    steps=52_000,  # 100 passes over the 16,551 images of VOC 2007 and 2012
    batch_size=32,
    evaluate_every=2600,
    data=dataclasses.replace(detect.CONFIG.data, size=640),
    model=Detector(scale="m"),
)

SCALES = {
    "small": Comparison(
        title="Six optimizers on a small YOLO26 (MiMuon paper, table 3)",
        config=dataclasses.replace(detect.CONFIG, steps=200, evaluate_every=50),
        optimizers=optimizers(warmup_steps=None, auxiliary=3e-3),
        columns=COLUMNS,
        curves=CURVES,
        best=("fitness", "max"),
        sweep="learning_rate=x0.3,x1,x3",
        paper=PAPER,
        paper_title="paper, YOLO26m on VOC (fitness)",
        note="The paper's numbers are of another size and data: only the order can be compared.",
    ),
    "paper": Comparison(
        title="Six optimizers on YOLO26m, Pascal VOC (MiMuon paper, table 3)",
        config=PAPER_CONFIG,
        optimizers=optimizers(warmup_steps=500, auxiliary=1e-3),
        columns=COLUMNS,
        curves=CURVES,
        best=("fitness", "max"),
        paper=PAPER,
        paper_title="paper (fitness)",
        note="Give the data with --data; without it the detector trains on scenes of digits.",
    ),
}
