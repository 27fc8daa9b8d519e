"""Table 2 of the MiMuon paper: six optimizers train a Qwen3 from scratch, and overfit.

small: 0.35M parameters make 5.5 passes over 30 kB, the first 8% of the text of `python -m train lm`
or of --data; the rest is held out. gpu: 29M parameters, for one GPU, never run. paper: Qwen3-0.6B
on WikiText-103 with the paper's settings. The first two also have MiMuon with a relative threshold.
All optimizers have the same number of tries; those of MiMuon are spread over learning rate and
threshold.
"""

from collections.abc import Mapping

from train.experiments import overfitting
from train.experiments.comparison import Comparison
from train.optimizers import AdamW, Lion, MiMuon, Muon, MuSGD, Optimizer, Shampoo
from train.presets import qwen3_0_6b_wikitext103

PAPER = {
    "adamw": 4.790,
    "lion": 4.508,
    "shampoo": 4.204,
    "muon": 4.141,
    "musgd": 4.087,
    "mimuon": 3.684,
}

EMBEDDING_RATE = 5e-3  # of Adam next to Muon; suits a model this small

SMALL: dict[str, Optimizer] = {
    "adamw": AdamW(learning_rate=1.5e-3, weight_decay=0.1),
    "lion": Lion(learning_rate=3e-4, weight_decay=0.2),
    "shampoo": Shampoo(
        learning_rate=0.02, weight_decay=0.1, auxiliary_learning_rate=EMBEDDING_RATE
    ),
    "muon": Muon(learning_rate=0.02, weight_decay=0.1, auxiliary_learning_rate=EMBEDDING_RATE),
    "musgd": MuSGD(learning_rate=0.015, weight_decay=0.05),
    "mimuon": MiMuon(learning_rate=0.02, auxiliary_learning_rate=EMBEDDING_RATE),
    "mimuon_relative": MiMuon(
        learning_rate=0.02,
        threshold=2.0,
        relative_to="noise",
        auxiliary_learning_rate=EMBEDDING_RATE,
    ),
}

SWEEP = "learning_rate=x0.25,x0.5,x1,x2"
SWEEPS = {
    "mimuon": "learning_rate=x0.5,x1 threshold=x1,x4",
    "mimuon_relative": "learning_rate=x0.5,x1 threshold=x1,x2",
}
NOTE = (
    "The paper's numbers are for another model size, text and length of training: only the order "
    "can be compared. The paper does not state the ranges that it tuned in. mimuon_relative is "
    "MiMuon with relative_to=noise."
)


SCALES: Mapping[str, Comparison] = {
    "small": Comparison(
        title="Optimizers on a small Qwen3 that overfits (MiMuon paper, table 2)",
        config=overfitting.named(overfitting.SMALL, "table2"),
        optimizers=SMALL,
        columns=overfitting.columns("nats/byte"),
        curves=overfitting.curves("nats/byte"),
        sweep=SWEEP,
        sweeps=SWEEPS,
        paper=PAPER,
        paper_title="paper, Qwen3-0.6B, final validation (nats/token)",
        note=NOTE,
    ),
    "gpu": Comparison(
        title="Optimizers on a Qwen3 of 29M parameters that overfits (MiMuon paper, table 2)",
        config=overfitting.named(overfitting.GPU, "table2_gpu"),
        optimizers=SMALL,
        columns=overfitting.columns("nats/token"),
        curves=overfitting.curves("nats/token"),
        paper=PAPER,
        paper_title="paper, Qwen3-0.6B, final validation (nats/token)",
        note=NOTE,
    ),
    "paper": Comparison(
        title="Six optimizers on Qwen3-0.6B, WikiText-103 (MiMuon paper, table 2)",
        config=qwen3_0_6b_wikitext103.CONFIG,
        optimizers={name: qwen3_0_6b_wikitext103.OPTIMIZERS[name] for name in PAPER},
        columns=overfitting.columns("nats/token"),
        curves=overfitting.curves("nats/token"),
        paper=PAPER,
        paper_title="paper, final validation (nats/token)",
    ),
}
