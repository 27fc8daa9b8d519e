"""Decoders that see little text many times, so that Muon's training loss falls below validation.

The MiMuon paper's runs overfit: Muon ends at 3.046 nats/token in training, and at 4.141 on held-out
text, 0.148 above its best. Its claim is about this regime.
"""

import dataclasses

from models.qwen3 import Qwen3Config
from train.data.text import TextData
from train.optimizers import AdamW
from train.tasks.language_model import LanguageModel, Sample

#: 0.35M parameters; 160 steps of 16 x 64 bytes are 5.5 passes over the first 8% of the language
#: reference, 30 kB. Evaluated on all of the rest.
SMALL = LanguageModel(
    preset="overfitting",
    steps=160,
    evaluate_every=16,
    checkpoint_every=160,
    optimizer=AdamW(),
    data=TextData(sequence_length=64, held_out=0.92, evaluation_sequences=128),
    model=Qwen3Config(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
    ),
    sample=Sample(length=60),
)

#: For one GPU, never run: 29M parameters, 33M tokens per run. A folder of about 10 MB of text
#: (--data) is 2.5M tokens, so 13 passes; without one it is the language reference.
GPU = LanguageModel(
    preset="overfitting_gpu",
    steps=1000,
    batch_size=64,
    evaluate_every=50,
    checkpoint_every=500,
    optimizer=AdamW(),
    data=TextData(tokenizer="bpe", sequence_length=512, held_out=0.1, evaluation_sequences=256),
    model=Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    ),
    sample=Sample(length=100),
    compute_dtype="bfloat16",
)


def named(config: LanguageModel, preset: str) -> LanguageModel:
    """The configuration under the name of an experiment."""
    return dataclasses.replace(config, preset=preset)
