"""Does a gate generalize better than Muon? Gates on a decoder that overfits.

Muon and five kinds of gates, absolute and relative, with the same number of tries: loss on held-out
text at the end, at its best, and at the same training loss. small, gpu and paper: the decoders of
`table2`.
"""

from train.experiments import gates, overfitting
from train.experiments.comparison import Comparison
from train.experiments.table2 import EMBEDDING_RATE
from train.optimizers import MiMuon
from train.presets import qwen3_0_6b_wikitext103

SMALL = gates.gates(
    MiMuon(learning_rate=0.02, auxiliary_learning_rate=EMBEDDING_RATE), rms=0.01, gap=1e-5
)
PAPER = gates.gates(qwen3_0_6b_wikitext103.OPTIMIZERS["mimuon"], rms=0.005, gap=1e-5)

SCALES = {
    "small": Comparison(
        title="Gates of MiMuon on a small decoder that overfits",
        config=overfitting.named(overfitting.SMALL, "gate_lm"),
        optimizers=SMALL,
        columns=gates.columns("nats/byte", 1.5),
        curves=gates.curves("nats/byte"),
        sweep=gates.MUON_SWEEP,
        sweeps=gates.SWEEPS,
        note=gates.NOTE,
    ),
    "gpu": Comparison(
        title="Gates of MiMuon on a decoder of 29M parameters that overfits",
        config=overfitting.named(overfitting.GPU, "gate_lm_gpu"),
        optimizers=SMALL,
        columns=gates.columns("nats/token", 4.0),
        curves=gates.curves("nats/token"),
        note=gates.NOTE,
    ),
    "paper": Comparison(
        title="Gates of MiMuon on Qwen3-0.6B, WikiText-103",
        config=qwen3_0_6b_wikitext103.CONFIG,
        optimizers=PAPER,
        columns=gates.columns("nats/token", 4.0),
        curves=gates.curves("nats/token"),
        note=gates.NOTE,
    ),
}
