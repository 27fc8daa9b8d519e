"""YOLO26m from scratch on Pascal VOC: table 3 of the MiMuon paper.

From the paper: 640 pixels, 32 images per step, 500 steps of warm-up followed by cosine decay, five
Newton-Schulz steps, learning rate 0.02 for muon, musgd and mimuon, musgd's weights 0.7 and 0.4,
mimuon's threshold 0.01, shampoo's roots every 20 steps. Not stated in the paper: the length of the
run (here 100 epochs of 16,551 images), the learning rates of adamw, lion and shampoo, all weight
decays, whether weights are averaged for evaluation (here they are), and which bound of the gap the
gate measures (here "rms").

Command: python -m train yolo26m_voc --optimizer mimuon
Data: voc/2007 and voc/2012 as TFDS prepares them (docs/detection_data.md), or folders:
    --data.train VOC2007:trainval VOC2012:trainval --data.held-out VOC2007:test
Device: a GPU or TPU with 80 GB of memory (an estimate), or several with --mesh.
Expect: the paper reports a fitness (mAP50-95) of adamw 0.197, lion 0.206, shampoo 0.376, muon
    0.402, musgd 0.427 and mimuon 0.461. This preset has never been run to its end.
"""

from train.data.detection import DetectionData
from train.optimizers import AdamW, Lion, MiMuon, Muon, MuSGD, Shampoo
from train.tasks.detection import Detection, Detector

OPTIMIZERS = {
    "mimuon": MiMuon(
        learning_rate=0.02,
        warmup_steps=500,
        clip_norm=10.0,
        threshold=0.01,
        orthogonalizer="jordan",
        weight_decay=5e-4,
    ),
    "muon": Muon(
        learning_rate=0.02,
        warmup_steps=500,
        clip_norm=10.0,
        orthogonalizer="jordan",
        weight_decay=5e-4,
    ),
    "musgd": MuSGD(
        learning_rate=0.02,
        warmup_steps=500,
        clip_norm=10.0,
        muon_weight=0.7,
        sgd_weight=0.4,
        orthogonalizer="jordan",
        weight_decay=5e-4,
    ),
    "shampoo": Shampoo(
        learning_rate=0.02, warmup_steps=500, clip_norm=10.0, update_every=20, weight_decay=5e-4
    ),
    "lion": Lion(learning_rate=1e-4, warmup_steps=500, clip_norm=10.0, weight_decay=0.01),
    "adamw": AdamW(
        learning_rate=1e-3, warmup_steps=500, clip_norm=10.0, b2=0.999, weight_decay=5e-4
    ),
}

CONFIG = Detection(
    preset="yolo26m_voc",
    steps=51_700,
    batch_size=32,
    evaluate_every=1_034,  # two epochs
    checkpoint_every=5_170,
    workers=8,
    optimizer=OPTIMIZERS["mimuon"],
    data=DetectionData(
        train=("tfds:voc/2007:train+validation", "tfds:voc/2012:train+validation"),
        held_out=("tfds:voc/2007:test",),
        size=640,
    ),
    model=Detector(scale="m", dtype="bfloat16"),
)
