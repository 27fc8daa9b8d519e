"""YOLO26-style detector, scale n, on a folder in Pascal VOC layout: by default blood cells (BCCD).

Table 3 of the MiMuon paper at small scale: from scratch on 205 real images of 3 classes. Any folder
with that layout works; the classes are read from it (docs/detection_data.md).

Command: python -m train detect_bccd --data.train bccd:train --data.held-out bccd:val
Data: Annotations, ImageSets and JPEGImages of BCCD (MIT licence) in data/bccd, or the two options.
Device: anything; two CPU cores are enough.
Time: 49 CPU minutes.
Expect: mAP50 0.86 and mAP50-95 0.58 (docs/results/detect_bccd.md; one seed, no search).
"""

from train.data.augment import Augmentation
from train.data.detection import DetectionData
from train.presets import detect
from train.tasks.detection import Detection, Detector

OPTIMIZERS = detect.OPTIMIZERS

CONFIG = Detection(
    preset="detect_bccd",
    steps=800,
    batch_size=16,
    evaluate_every=100,
    average_ramp=160.0,
    optimizer=OPTIMIZERS["mimuon"],
    data=DetectionData(
        train=("data/bccd:train",),
        held_out=("data/bccd:val",),
        size=320,
        augmentation=Augmentation(plain_epochs=10),
    ),
    model=Detector(scale="n"),
)
