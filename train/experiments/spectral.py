"""The spectral family, after "Delving into Muon and Beyond": eight variants on a GPT-2 decoder.

mSGD, mSGDS, mSGDQ and mSGDZ apply U S^p V^T with p = 1, 1/2, 1/4, 0 to the momentum; Adam, AdamS,
AdamQ and AdamZ apply it to Adam's update. Queries, keys and values are separate matrices. small: a
decoder of the size of `python -m train lm` on its text. gpu: 30M parameters, for one GPU, never
run. paper: GPT-2 124M on OpenWebText.

The paper gives the learning rates 7e-3 for mSGDZ and 1e-2 for AdamS. An update of power p scales as
the gradient to the power p, so the others need different ones; those of the small scale are guesses
that the sweep corrects.
"""

import dataclasses

from models.gpt2 import GPT2Config, tiny
from train.experiments import overfitting
from train.experiments.comparison import Column, Comparison, Curve
from train.optimizers import Optimizer, SpectralAdam, SpectralSGD
from train.presets import gpt2_124m_openwebtext, lm

VECTOR_RATE = 3e-4  # the paper's, for parameters that are not matrices
SGD_RATES = {"mSGD": (1.0, 0.1), "mSGDS": (0.5, 0.05), "mSGDQ": (0.25, 0.02), "mSGDZ": (0.0, 7e-3)}
ADAM_RATES = {
    "Adam": (1.0, 1e-3),
    "AdamS": (0.5, 1e-2),
    "AdamQ": (0.25, 7e-3),
    "AdamZ": (0.0, 7e-3),
}


def variants(sgd_vectors: float, adam_vectors: float) -> dict[str, Optimizer]:
    """The eight variants, by their names in the paper.

    Args:
        sgd_vectors: learning rate of parameters that are not matrices, with momentum.
        adam_vectors: the same with Adam.
    """
    sgd = {
        name: SpectralSGD(learning_rate=rate, p=p, auxiliary_learning_rate=sgd_vectors)
        for name, (p, rate) in SGD_RATES.items()
    }
    adam = {
        name: SpectralAdam(learning_rate=rate, p=p, auxiliary_learning_rate=adam_vectors)
        for name, (p, rate) in ADAM_RATES.items()
    }
    return {**sgd, **adam}


COLUMNS = (
    Column("validation loss (nats/token)", "validation", "loss"),
    Column("training loss (nats/token)", "train", "loss"),
)
CURVES = (
    Curve("validation loss (nats/token)", "validation", "loss"),
    Curve("training loss (nats/token)", "train", "loss"),
)

SCALES = {
    "small": Comparison(
        title="The spectral family on a small GPT-2",
        config=dataclasses.replace(
            lm.CONFIG,
            preset="spectral",
            steps=150,
            model=tiny(),
            sample=dataclasses.replace(lm.CONFIG.sample, length=200),  # the model has 256 positions
        ),
        optimizers=variants(sgd_vectors=0.1, adam_vectors=3e-3),
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.3,x1,x3",
        note="Learning rates of vectors and embeddings: 0.1 with momentum, 3e-3 with Adam.",
    ),
    "gpu": Comparison(
        title="The spectral family on a GPT-2 of 30M parameters",
        config=dataclasses.replace(
            overfitting.GPU,
            preset="spectral_gpu",
            model=GPT2Config(vocab_size=8192, n_positions=1024, n_embd=512, n_layer=8, n_head=8),
        ),
        optimizers=variants(sgd_vectors=0.1, adam_vectors=3e-3),
        columns=COLUMNS,
        curves=CURVES,
        note="Learning rates of vectors and embeddings: 0.1 with momentum, 3e-3 with Adam.",
    ),
    "paper": Comparison(
        title="The spectral family on GPT-2 124M, OpenWebText",
        config=gpt2_124m_openwebtext.CONFIG,
        optimizers=variants(sgd_vectors=VECTOR_RATE, adam_vectors=VECTOR_RATE),
        columns=COLUMNS,
        curves=CURVES,
        note="Learning rates: 7e-3 (mSGDZ) and 1e-2 (AdamS) are the paper's, the other six ours.",
    ),
}
