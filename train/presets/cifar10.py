"""ResNet-18 on CIFAR-10: the image classifier of the Muon-MVR paper, which states no settings.

Command: python -m train cifar10 --data.path FOLDER
Data: FOLDER contains train.zip and test.zip (with one folder of images per class), or a prepared
    TFDS dataset.
Device: a GPU; each step takes 0.43 TFLOP.
Expect: this preset has never been run to its end.
"""

from pathlib import Path

from models.classifier import resnet18
from train.data.labelled import ImageData
from train.optimizers import SGDM, AdamW, MiMuon, Muon, MuonMVR1, MuonMVR2
from train.tasks.classification import Classification

OPTIMIZERS = {
    "mimuon": MiMuon(auxiliary_learning_rate=3e-3),
    "muon": Muon(auxiliary_learning_rate=3e-3),
    "muon_mvr1": MuonMVR1(auxiliary_learning_rate=3e-3),
    "muon_mvr2": MuonMVR2(auxiliary_learning_rate=3e-3),
    "adamw": AdamW(learning_rate=1e-3, weight_decay=0.05),
    "sgdm": SGDM(learning_rate=0.05, weight_decay=5e-4),
}

CONFIG = Classification(
    preset="cifar10",
    steps=11_700,  # 30 epochs
    batch_size=128,
    evaluate_every=390,
    model=resnet18(),
    data=ImageData(path=Path("data/cifar10"), shift=4, flip=True),
    optimizer=OPTIMIZERS["mimuon"],
)
