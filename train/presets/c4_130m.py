"""A 134M-parameter Qwen3-style decoder on C4, to compare optimizers with variance reduction.

The task of the Muon-MVR paper's language model: muon_mvr1 and muon_mvr2 against muon, adamw and
momentum SGD. The paper states neither the size of its model nor its settings: model and sequence
length are those usual for "130M on C4", the settings are the optimizers' defaults.

Command: python -m train c4_130m --optimizer muon_mvr2
Data: TFDS's c4/en in $TFDS_DATA_DIR or --data.path, prepared with file_format="array_record" (which
    requires TensorFlow and Apache Beam). The first two million pages, about a billion tokens, are
    used, with a vocabulary learned from them.
Device: a GPU or TPU with 24 GB of memory (an estimate), or several with --mesh.
Expect: this preset has never been run.
"""

from models.qwen3 import Qwen3Config
from train.data.text import TextData
from train.optimizers import SGDM, AdamW, MiMuon, Muon, MuonMVR1, MuonMVR2
from train.tasks.language_model import LanguageModel, Sample

OPTIMIZERS = {
    "muon_mvr2": MuonMVR2(),
    "muon_mvr1": MuonMVR1(),
    "muon": Muon(),
    "mimuon": MiMuon(),
    "adamw": AdamW(learning_rate=1e-3),
    "sgdm": SGDM(),
}

CONFIG = LanguageModel(
    preset="c4_130m",
    steps=10_000,
    batch_size=64,
    evaluate_every=250,
    checkpoint_every=1000,
    optimizer=OPTIMIZERS["muon_mvr2"],
    data=TextData(
        source="tfds",
        dataset="c4/en",
        split="train[:2000000]",
        validation_split="validation[:20000]",
        tokenizer="bpe",
        sequence_length=1024,
    ),
    model=Qwen3Config(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        tie_word_embeddings=False,
    ),
    sample=Sample(prompt="The", length=200),
    compute_dtype="bfloat16",
)
