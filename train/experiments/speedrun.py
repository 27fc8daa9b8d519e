"""Steps to a validation loss: the setting of modded-nanogpt's optimization track.

small: a decoder of 0.13M parameters on the bytes of the text of `python -m train lm`; the target
is what Muon reaches. gpu: one GPU with 80 GB, FineWeb. track3: the benchmark's own setting, GPT-2
tokens of FineWeb in its published shards (--data FOLDER), 162.4M parameters, target 3.28.
"""

import dataclasses

from models.nanogpt import NanoGPTConfig, tiny, track_3
from train.data.text import TextData
from train.experiments.comparison import Column, Curve
from train.experiments.steps_to_target import Speedrun
from train.optimizers import (
    AdamW,
    MiMuon,
    Muon,
    MuonH,
    MuSGD,
    NorMuon,
    Optimizer,
    SOAPMuon,
)
from train.tasks.language_model import LanguageModel, Sample

# Of all: the track's schedule, constant and then linear over the last 70 %, without warm-up.
SCHEDULE = {"warmup_steps": 0, "cooldown": 0.7}
EMBEDDING_RATE = 5e-3  # of Adam next to Muon; suits a model this small

# The middle ones of the learning rates that are tried.
SMALL: dict[str, Optimizer] = {
    "adamw": AdamW(learning_rate=6e-3, weight_decay=0.1, **SCHEDULE),
    "muon": Muon(learning_rate=0.03, auxiliary_learning_rate=EMBEDDING_RATE, **SCHEDULE),
    "normuon": NorMuon(learning_rate=0.03, auxiliary_learning_rate=EMBEDDING_RATE, **SCHEDULE),
    "soap_muon": SOAPMuon(
        learning_rate=0.03, update_every=10, auxiliary_learning_rate=EMBEDDING_RATE, **SCHEDULE
    ),
    "muonh": MuonH(learning_rate=0.03, auxiliary_learning_rate=EMBEDDING_RATE, **SCHEDULE),
    "muon_lookahead": Muon(
        learning_rate=0.03,
        auxiliary_learning_rate=EMBEDDING_RATE,
        lookahead=0.6,
        lookahead_decay=0.9,  # a horizon of a 20th of the run; the track's is a 30th
        **SCHEDULE,
    ),
    "mimuon": MiMuon(
        learning_rate=0.03, weight_decay=0.1, auxiliary_learning_rate=EMBEDDING_RATE, **SCHEDULE
    ),
    "musgd": MuSGD(learning_rate=0.03, **SCHEDULE),
}

# The settings of the track's results 2, 36, 10 and 37; those of SOAP-Muon stand in 44, without its
# floor, brake and lookahead. Its losses are sums, ours means.
TRACK = {"clip_norm": float("inf"), "cooldown": 0.7, "warmup_steps": 0}
LARGE: dict[str, Optimizer] = {
    "adamw": AdamW(learning_rate=1.5e-3, weight_decay=0.1, **TRACK | {"warmup_steps": 250}),
    "muon": Muon(learning_rate=0.025, weight_decay=0.05, auxiliary_learning_rate=4e-3, **TRACK),
    "normuon": NorMuon(
        learning_rate=0.035,
        weight_decay=0.025,
        per="longer",
        auxiliary_learning_rate=4e-3,
        **TRACK,
    ),
    "soap_muon": SOAPMuon(learning_rate=0.0375, auxiliary_learning_rate=4e-3, **TRACK),
    "muonh": MuonH(learning_rate=0.018, auxiliary_learning_rate=6.4e-3, **TRACK),
    "muon_lookahead": Muon(
        learning_rate=0.025,
        weight_decay=0.05,
        auxiliary_learning_rate=4e-3,
        lookahead=0.6,
        **TRACK,
    ),
}
FOUR = ("adamw", "muon", "normuon", "soap_muon")

COLUMNS = (
    Column("validation loss (nats/token)", "validation", "loss"),
    Column("training loss (nats/token)", "train", "loss"),
)
CURVES = (
    Curve("validation loss (nats/token)", "validation", "loss"),
    Curve("training loss (nats/token)", "train", "loss"),
)
NOTE = (
    "MuonH needs output projections that do not start at zero; all optimizers start from the same."
)

SMALL_MODEL = dataclasses.replace(tiny(), n_embd=64, n_layer=2, n_head=2, projection_scale=0.5)
GPU_MODEL = NanoGPTConfig(vocab_size=50304, n_embd=384, n_layer=6, n_head=3, projection_scale=0.5)
FINEWEB = TextData(source="shards", sequence_length=1024, evaluation_sequences=None)

SCALES = {
    "small": Speedrun(
        title="Steps to a loss on a small decoder",
        config=LanguageModel(
            preset="speedrun",
            steps=200,
            evaluate_every=10,
            checkpoint_every=200,
            optimizer=SMALL["muon"],
            data=TextData(sequence_length=64, evaluation_sequences=128),
            model=SMALL_MODEL,
        ),
        optimizers=SMALL,
        first=FOUR,
        columns=COLUMNS,
        curves=CURVES,
        sweep="learning_rate=x0.5,x1,x2,x4",
        note=NOTE,
    ),
    "gpu": Speedrun(
        title="Steps to a loss on one GPU",
        config=LanguageModel(
            preset="speedrun_gpu",
            steps=800,
            batch_size=64,
            evaluate_every=25,
            checkpoint_every=800,
            optimizer=LARGE["muon"],
            data=dataclasses.replace(FINEWEB, evaluation_sequences=512),
            model=GPU_MODEL,
            sample=Sample(prompt="464", length=50),
            compute_dtype="bfloat16",
        ),
        optimizers=LARGE,
        first=FOUR,
        columns=COLUMNS,
        curves=CURVES,
        note=NOTE,
    ),
    "track3": Speedrun(
        title="Steps to a loss of 3.28 on FineWeb (modded-nanogpt, optimization track)",
        config=LanguageModel(
            preset="speedrun_track3",
            steps=3250,
            batch_size=512,
            micro_batches=8,
            evaluate_every=25,
            checkpoint_every=500,
            optimizer=LARGE["muon"],
            data=FINEWEB,
            model=dataclasses.replace(track_3(), projection_scale=0.5),
            sample=Sample(prompt="464", length=50),
            compute_dtype="bfloat16",
        ),
        optimizers=LARGE,
        first=("muon", "normuon"),
        columns=COLUMNS,
        curves=CURVES,
        target=3.28,
        paper={"adamw": 5625, "muon": 3250, "normuon": 3250, "soap_muon": 2750, "muonh": 3250},
        paper_title="the track's steps to 3.28",
        note=(
            "The track's output projections start at zero, except for MuonH's. Its embedding has a "
            "learning rate of its own, 0.7, and its vectors 0.015. Its steps are those of runs "
            "whose learning rate ends there."
        ),
    ),
}
