"""A 10M-parameter Qwen3-style decoder on a folder of books, with a vocabulary learned from them.

Complete pretraining at small scale: byte-pair encoding learned from the training text, MiMuon, and
the loss on WikiText-103's official validation file, which is a different kind of text. It does not
reproduce a paper. The optimizers have the settings of the MiMuon paper's language model, except
that the embedding has a learning rate that suits this size.

Command: python -m train books_10m --data.path BOOKS --data.validation wiki.valid.tokens
    BOOKS is a folder of .txt, .txt.xz or .txt.gz files; without --data.validation the end of the
    books is held out.
Device: anything; two CPU cores are enough.
Time: 31 CPU minutes.
Expect: on 43.6 MB of books, validation loss on WikiText-103's file from 9.07 to 6.96 nats/token,
    training loss to 4.8 (docs/results/books_10m.md).
"""

from models.qwen3 import Qwen3Config
from train.data.text import TextData
from train.optimizers import AdamW, MiMuon, Muon, MuSGD
from train.tasks.language_model import LanguageModel, Sample

OPTIMIZERS = {
    "mimuon": MiMuon(learning_rate=0.02, threshold=5e-3, auxiliary_learning_rate=5e-3),
    "muon": Muon(learning_rate=0.02, auxiliary_learning_rate=5e-3),
    "musgd": MuSGD(learning_rate=0.015, auxiliary_learning_rate=5e-3),
    "adamw": AdamW(learning_rate=1.5e-3),
}

CONFIG = LanguageModel(
    preset="books_10m",
    steps=300,
    optimizer=OPTIMIZERS["mimuon"],
    data=TextData(tokenizer="bpe", evaluation_sequences=128),
    model=Qwen3Config(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    ),
    sample=Sample(prompt="It was", length=100),
)
