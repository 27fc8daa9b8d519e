"""A 0.6M-parameter Qwen3-style decoder on the Python language reference, byte by byte.

A demonstration of MiMuon on real text, end to end, without a download. It does not reproduce a
paper. The optimizers have the settings of the MiMuon paper's language model, except that the
embedding has a learning rate that suits this size.

Command: python -m train lm
Device: anything; two CPU cores are enough.
Time: about 100 CPU seconds, set-up and sampling included; one to two minutes on two cores.
Expect: validation loss from 5.42 down to 1.38 nats/byte; 1.30 with muon, 1.73 with adamw (one seed,
the best of two or three learning rates).
"""

from train.data.text import TextData
from train.optimizers import AdamW, MiMuon, Muon
from train.tasks.language_model import LanguageModel

OPTIMIZERS = {
    "mimuon": MiMuon(
        learning_rate=0.02, weight_decay=0.08, threshold=5e-3, auxiliary_learning_rate=5e-3
    ),
    "muon": Muon(learning_rate=0.02, weight_decay=0.1, auxiliary_learning_rate=5e-3),
    "adamw": AdamW(learning_rate=1.5e-3, weight_decay=0.1),
}

CONFIG = LanguageModel(
    preset="lm",
    steps=200,
    optimizer=OPTIMIZERS["mimuon"],
    data=TextData(sequence_length=128),
)
