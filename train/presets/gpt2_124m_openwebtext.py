"""GPT-2 124M on OpenWebText: the spectral family of "Delving into Muon and Beyond".

Eight variants: U S^p V^T of the momentum (mSGD, mSGDS, mSGDQ, mSGDZ) or of Adam's update (Adam,
AdamS, AdamQ, AdamZ) for p = 1, 1/2, 1/4, 0:

    python -m train gpt2_124m_openwebtext --optimizer spectral_adam --optimizer.p 0.5
    python -m train gpt2_124m_openwebtext --optimizer spectral_sgd --optimizer.p 0

From the paper: learning rates 7e-3 (mSGDZ) and 1e-2 (AdamS) for the matrices and 3e-4 for the other
parameters; queries, keys and values are separate matrices. The other powers need different learning
rates. The paper states neither the batch size nor the length of the run: here it is 0.5 million
tokens per step, as is usual for this model. The vocabulary is padded from 50257 to a multiple of
128.

Command: python -m train gpt2_124m_openwebtext --optimizer spectral_adam
Data: OpenWebText as a prepared TFDS dataset `openwebtext` with the feature `text`, in
    $TFDS_DATA_DIR or --data.path, and GPT-2's tokenizer.json in data/gpt2 (or --data.tokenizer;
    "bpe" learns a vocabulary instead). TFDS does not provide OpenWebText; another prepared text
    can be chosen with --data.dataset.
Device: a GPU or TPU with 40 GB of memory (an estimate), or several with --mesh.
Expect: this preset has never been run.
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
