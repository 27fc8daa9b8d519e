"""YOLO26n on Pascal VOC with the recipe of the published detectors: MuSGD.

From the recipe: weights 0.2 (Muon) and 1.0 (SGD), momentum 0.937, Jordan's polynomial, gain 1 for
convolutions, depthwise kernels orthogonalized too, learning rate 0.01 with a final fraction of 0.01
and 3 times that in the class towers, decay 5e-4 in the SGD part, gradients of 64 images summed and
clipped at norm 10, 3 epochs of warm-up, averaged weights, 100 epochs, the last 10 without mosaic.

What differs: the learning rate follows a cosine at every step instead of falling linearly once per
epoch; the warm-up changes the learning rate only, not the momentum or the number of images per
step; Nesterov's look-ahead is in the Muon part only; decay also applies to norms and biases;
arithmetic is float32.

Command: python -m train yolo26_recipe
Data: as for yolo26m_voc.
Device: a GPU or TPU with 40 GB of memory (an estimate).
Expect: this preset has never been run to its end.
"""

import dataclasses

from train.optimizers import MuSGD
from train.presets import yolo26m_voc
from train.tasks.detection import Detector

OPTIMIZERS = {
    "musgd": MuSGD(
        learning_rate=0.01,
        warmup_steps=777,
        final_fraction=0.01,
        clip_norm=10.0,
        muon_weight=0.2,
        sgd_weight=1.0,
        momentum=0.937,
        sgd_momentum=0.937,
        orthogonalizer="jordan",
        gain="unflattened",
        weight_decay=5e-4,
    ),
}

CONFIG = dataclasses.replace(
    yolo26m_voc.CONFIG,
    preset="yolo26_recipe",
    steps=25_900,
    batch_size=64,
    evaluate_every=518,  # two epochs
    checkpoint_every=2_590,
    optimizer=OPTIMIZERS["musgd"],
    model=Detector(scale="n", depthwise_matrices=True),
)
