"""A small YOLO26-style detector on scenes of handwritten digits, made on the fly.

A demonstration of the detector, end to end, without a download: a model with half the channels of
scale n, on 6000 scenes of 96 x 96 pixels that are composed of scikit-learn's scans of digits. The
200 held-out scenes show other scans than the training scenes. It does not reproduce a paper.

Command: python -m train detect
Device: anything; two CPU cores are enough.
Time: about 400 CPU seconds, compilation included; four to five minutes on two free cores.
Expect: mAP50 above 0.75 and mAP50-95 above 0.5 (0.85 and 0.66 with --steps 1500 --average-ramp 300;
one seed, no search).
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
    steps=1000,
    batch_size=16,
    evaluate_every=250,
    average_ramp=200.0,
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
