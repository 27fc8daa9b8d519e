"""A small YOLO26-style detector on scenes of handwritten digits, made on the fly.

Command: python -m train detect
"""

from train.data.augment import Augmentation
from train.data.detection import DetectionData
from train.optimizers import AdamW, MiMuon, Muon, MuSGD
from train.tasks.detection import Detection, Detector

OPTIMIZERS = {
    "mimuon": MiMuon(
        learning_rate=0.02, weight_decay=0.01, clip_norm=10.0, auxiliary_learning_rate=3e-3
    ),
    "muon": Muon(
        learning_rate=0.02, weight_decay=0.01, clip_norm=10.0, auxiliary_learning_rate=3e-3
    ),
    "adamw": AdamW(learning_rate=3e-3, weight_decay=0.05, clip_norm=10.0),
    "musgd": MuSGD(
        learning_rate=0.02,
        muon_weight=0.2,
        sgd_weight=1.0,
        momentum=0.937,
        sgd_momentum=0.937,
        orthogonalizer="jordan",
        gain="unflattened",
        weight_decay=5e-4,
        clip_norm=10.0,
    ),
}

CONFIG = Detection(
    preset="detect",
    steps=1500,
    batch_size=16,
    evaluate_every=250,
    average_ramp=300.0,
    optimizer=OPTIMIZERS["mimuon"],
    data=DetectionData(
        size=96,
        max_objects=24,
        scenes=6000,
        held_out_scenes=200,
        augmentation=Augmentation(mirror=0.0, mosaic=0.0),
    ),
    model=Detector(scale="n", width=0.125),
)
