"""GPT-2 124M on OpenWebText: the spectral family of "Delving into Muon and Beyond".

Eight variants, U S^p V^T of momentum (mSGD, mSGDS, mSGDQ, mSGDZ) or of Adam's update (Adam, AdamS,
AdamQ, AdamZ) for p = 1, 1/2, 1/4, 0:

    python -m train gpt2_124m_openwebtext --optimizer spectral_adam --optimizer.p 0.5
    python -m train gpt2_124m_openwebtext --optimizer spectral_sgd --optimizer.p 0

From the paper: learning rates of the matrices 7e-3 (mSGDZ) and 1e-2 (AdamS), 3e-4 for what is no
matrix, queries, keys and values taken apart. The other powers need learning rates of their own, and
the paper's text names neither the batch nor the length: here 0.5 million tokens a step, as is usual
for this model. The vocabulary is filled up from 50257 to a multiple of 128.

Command: python -m train gpt2_124m_openwebtext --optimizer spectral_adam
Data: OpenWebText as a prepared TFDS dataset `openwebtext` with the feature `text`, in
    $TFDS_DATA_DIR or --data.path (TFDS itself has none of that name; any prepared text does, with
    --data.dataset), and tokenizer.json of GPT-2 in data/gpt2 (or --data.tokenizer; "bpe" learns a
    vocabulary instead).
Device: a GPU or TPU with 40 GB of memory, or several with --mesh.
Expect: this preset has not been run here.
"""

import dataclasses

from models.gpt2 import gpt2_124m
from train.data.text import TextData
from train.optimizers import AdamW, Muon, SpectralAdam, SpectralSGD
from train.tasks.language_model import LanguageModel, Sample

OPTIMIZERS = {
    "spectral_adam": SpectralAdam(learning_rate=1e-2, p=0.5, auxiliary_learning_rate=3e-4),
    "spectral_sgd": SpectralSGD(learning_rate=7e-3, p=0.0, auxiliary_learning_rate=3e-4),
    "muon": Muon(learning_rate=0.02, auxiliary_learning_rate=3e-4),
    "adamw": AdamW(learning_rate=6e-4),
}

CONFIG = LanguageModel(
    preset="gpt2_124m_openwebtext",
    steps=10_000,
    batch_size=512,
    micro_batches=16,
    evaluate_every=250,
    checkpoint_every=1000,
    optimizer=OPTIMIZERS["spectral_adam"],
    data=TextData(
        source="tfds",
        dataset="openwebtext",
        split="train[:99%]",
        validation_split="train[99%:]",
        tokenizer="data/gpt2/tokenizer.json",
        sequence_length=1024,
    ),
    model=dataclasses.replace(gpt2_124m(), vocab_size=50_304),
    sample=Sample(prompt="The", length=200),
    compute_dtype="bfloat16",
    remat=True,
)
