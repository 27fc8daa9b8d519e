"""Table 2 of the MiMuon paper: six optimizers train a Qwen3 from scratch; validation loss.

small: 3.2M parameters on the bytes of the text of `python -m train lm`, or of the files given with
--data and --validation, every optimizer tried at three learning rates. paper: Qwen3-0.6B on
WikiText-103 with the paper's settings.
"""

import dataclasses

from models.qwen3 import Qwen3Config
from train.experiments.comparison import Column, Comparison, Curve
from train.optimizers import AdamW, Lion, MiMuon, Muon, MuSGD, Optimizer, Shampoo
from train.presets import lm, qwen3_0_6b_wikitext103

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
    "mimuon": MiMuon(learning_rate=0.02, weight_decay=0.08, auxiliary_learning_rate=EMBEDDING_RATE),
}

COLUMNS = (
    Column("validation loss (nats/token)", "validation", "loss"),
    Column("training loss (nats/token)", "train", "loss"),
)
CURVES = (
    Curve("validation loss (nats/token)", "validation", "loss"),
    Curve("training loss (nats/token)", "train", "loss"),
)

MODEL = Qwen3Config(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)

SCALES = {
    "small": Comparison(
        title="Six optimizers on a small Qwen3 (MiMuon paper, table 2)",
        config=dataclasses.replace(lm.CONFIG, preset="table2", steps=150, model=MODEL),
        optimizers=SMALL,
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.3,x1,x3",
        paper=PAPER,
        paper_title="paper, Qwen3-0.6B (nats/token)",
        note=(
            "The paper's numbers are for another model size, text and length of training: only the "
            "order can be compared. The paper does not state the ranges that it tuned in. Tokens "
            "are bytes."
        ),
    ),
    "paper": Comparison(
        title="Six optimizers on Qwen3-0.6B, WikiText-103 (MiMuon paper, table 2)",
        config=qwen3_0_6b_wikitext103.CONFIG,
        optimizers={name: qwen3_0_6b_wikitext103.OPTIMIZERS[name] for name in PAPER},
        columns=COLUMNS,
        curves=CURVES,
        paper=PAPER,
        paper_title="paper (nats/token)",
    ),
}
