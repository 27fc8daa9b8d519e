"""Table 2 of the MiMuon paper, optimizers train a Qwen3 from scratch and overfit; and more gates.

small: 0.35M parameters make 5.5 passes over 30 kB, the first 8% of the text of `python -m train lm`
or of --data; the rest is held out. gpu: 29M parameters, for one GPU, never run. paper: Qwen3-0.6B
on WikiText-103 with the paper's settings. The first two also have Muon without Nesterov, and MiMuon
with other gates. All optimizers have the same number of tries; those of MiMuon are spread over
learning rate and threshold.
"""

from collections.abc import Mapping

from train.experiments import gates, overfitting
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
    **gates.gates(
        MiMuon(learning_rate=0.02, auxiliary_learning_rate=EMBEDDING_RATE), rms=0.005, gap=1e-5
    ),
}
FIRST = [name for name in SMALL if name not in ("lion", "shampoo")]

NOTE = (
    "The paper's numbers are for another model size, text and length of training: only the order "
    f"can be compared. The paper does not state the ranges that it tuned in. {gates.NOTE}"
)

SCALES: Mapping[str, Comparison] = {
    "small": Comparison(
        title="Optimizers on a small Qwen3 that overfits (MiMuon paper, table 2)",
        config=overfitting.named(overfitting.SMALL, "table2"),
        optimizers=SMALL,
        first=FIRST,
        columns=gates.columns("nats/byte", 1.7),
        curves=gates.curves("nats/byte"),
        sweep=gates.MUON_SWEEP,
        sweeps=gates.SWEEPS,
        paper=PAPER,
        paper_title="paper, Qwen3-0.6B, final validation (nats/token)",
        note=NOTE,
        against=("muon", "muon_plain"),
    ),
    "gpu": Comparison(
        title="Optimizers on a Qwen3 of 29M parameters that overfits (MiMuon paper, table 2)",
        config=overfitting.named(overfitting.GPU, "table2_gpu"),
        optimizers=SMALL,
        first=FIRST,
        columns=gates.columns("nats/token", 4.0),
        curves=gates.curves("nats/token"),
        paper=PAPER,
        paper_title="paper, Qwen3-0.6B, final validation (nats/token)",
        note=NOTE,
        against=("muon", "muon_plain"),
    ),
    "paper": Comparison(
        title="Six optimizers on Qwen3-0.6B, WikiText-103 (MiMuon paper, table 2)",
        config=qwen3_0_6b_wikitext103.CONFIG,
        optimizers={name: qwen3_0_6b_wikitext103.OPTIMIZERS[name] for name in PAPER},
        columns=gates.columns("nats/token", 4.0),
        curves=gates.curves("nats/token"),
        paper=PAPER,
        paper_title="paper, final validation (nats/token)",
        against=("muon", "muon_plain"),
    ),
}
