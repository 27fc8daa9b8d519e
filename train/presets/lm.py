"""A 0.7M-parameter decoder on the Python language reference, byte by byte.

The demonstration: MiMuon on real text, end to end, without a download. It reproduces no paper.
Command: python -m train lm
Device: anything; about two minutes on 2 CPU cores.
Expect: validation loss from 5.5 down to about 1.7 nats/byte.
"""

from train.optimizers import AdamW, MiMuon, Muon
from train.tasks.language_model import LanguageModel

OPTIMIZERS = {
    "mimuon": MiMuon(learning_rate=0.02, weight_decay=0.08, threshold=5e-3),
    "muon": Muon(learning_rate=0.02, weight_decay=0.1),
    "adamw": AdamW(learning_rate=3e-3, weight_decay=0.1),
}

CONFIG = LanguageModel(preset="lm", optimizer=OPTIMIZERS["mimuon"])
