# %% [markdown]
# # A detector, trained with MiMuon
#
# A YOLO26-style detector with 0.7 million parameters learns to find handwritten digits. This
# notebook shows the scenes, the model, a training loop, and what the detector finds. `python -m
# train detect` does the same for longer, with checkpoints and averaged weights.
#
# Models and data are not in the wheel: this notebook needs a checkout. It takes about ten minutes
# on two CPU cores.

# %%
# Makes a checkout importable, and installs what it needs.
CHECKOUT = ".."

import importlib.util
import pathlib
import subprocess
import sys
import tomllib

if not (pathlib.Path(CHECKOUT) / "models").is_dir():
    raise SystemExit(
        "models/ was not found: clone the repository, set CHECKOUT above, and run again"
    )
names = ("mimuon_jax", "flax", "grain", "matplotlib", "sklearn")
if any(importlib.util.find_spec(name) is None for name in names):
    project = tomllib.loads((pathlib.Path(CHECKOUT) / "pyproject.toml").read_text())
    packages = [str(pathlib.Path(CHECKOUT).resolve()), *project["dependency-groups"]["train"]]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
sys.path.insert(0, str(pathlib.Path(CHECKOUT).resolve()))

# %%
import dataclasses
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from mimuon_jax import describe, diagnostics, mimuon
from models.yolo26 import (
    YOLO26,
    Targets,
    detection_loss,
    end_to_end,
    matrix_dimension_numbers,
    one_to_many_weight,
    scaled,
)
from models.yolo26.boxes import corners
from train.data.augment import Augmentation
from train.data.detection import DetectionData, evaluation_batches, read_pictures, training_batches

STEPS = 800  # five minutes on two CPU cores
SIDE = 96  # pixels
SIZE = (SIDE, SIDE)
BATCH = 16
PLATE = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1}  # behind text

# %% [markdown]
# ## Scenes
#
# Scans of digits from scikit-learn are composed into scenes with exact boxes. The held-out scenes
# show other scans than the training scenes.

# %%
data = DetectionData(
    size=SIDE,
    max_objects=24,
    scenes=4000,
    held_out_scenes=64,
    augmentation=Augmentation(mirror=0.0, mosaic=0.0),
)
training, held_out = read_pictures(data, seed=0)
batches = training_batches(training, data, batch_size=BATCH, steps=STEPS, seed=0)


def targets(batch):
    """The objects of a batch, with corners in pixels."""
    return Targets(corners(batch["boxes"] * SIDE), batch["labels"], batch["valid"])


def show(axes, image, boxes, titles, colour):
    """Draws an image with boxes."""
    axes.imshow(image)
    axes.set_axis_off()
    for (left, top, right, bottom), title in zip(boxes, titles):
        frame = plt.Rectangle((left, top), right - left, bottom - top, fill=False, color=colour)
        axes.add_patch(frame)
        if title != "":
            axes.text(left, top - 1, title, color=colour, fontsize=8, bbox=PLATE)


figure, every = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
first = batches[0]
true = targets(first)
for i, axes in enumerate(every):
    rows = first["valid"][i]
    show(axes, first["image"][i], true.boxes[i][rows], first["labels"][i][rows], "white")
figure.suptitle("training scenes")
plt.show()

# %% [markdown]
# ## Model and optimizer
#
# MiMuon treats a kernel `[height, width, in, out]` as a matrix with `height * width * in` rows.
# Depthwise kernels, norms and biases are updated by AdamW.

# %%
model = YOLO26(dataclasses.replace(scaled("n", 10), width=0.125), rngs=nnx.Rngs(0))
rate = optax.warmup_cosine_decay_schedule(0.0, 1.0, STEPS // 10, STEPS)
tx = optax.chain(
    optax.clip_by_global_norm(10.0),
    mimuon(
        lambda step: 0.02 * rate(step),
        weight_decay=0.01,
        auxiliary=optax.adamw(lambda step: 3e-3 * rate(step)),
        matrices=matrix_dimension_numbers,
    ),
)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
lines = describe(nnx.state(model, nnx.Param), matrix_dimension_numbers).splitlines()
print("\n".join([*lines[:12], "...", lines[-1]]))

# %% [markdown]
# ## Training
#
# The model has two heads. The one-to-many head, which predicts each object several times, helps at
# first; its weight in the loss decreases. The one-to-one head is the one that is used in the end.


# %%
@nnx.jit
def step(model, optimizer, batch, weight):
    """Makes one update; returns the loss terms of the one-to-one head, times their gains."""

    def loss(model):
        many, one = model(batch["image"] / 255.0, training=True)
        return detection_loss(many, one, targets(batch), size=SIZE, weight=weight)

    (_, terms), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    return terms | {"open gates": diagnostics.gate_rate(optimizer.opt_state)}


print("compiling the first step: one to two minutes on two CPU cores", flush=True)
began, records = time.monotonic(), []
for k in range(STEPS):
    records.append(step(model, optimizer, batches[k], one_to_many_weight(k, STEPS)))
    if k == 0:
        jax.block_until_ready(records)
        print(f"compiled in {time.monotonic() - began:.0f} s; {STEPS} steps follow", flush=True)
records = {name: np.array([float(record[name]) for record in records]) for name in records[0]}

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name in ("box", "cls", "dfl"):
    window = max(STEPS // 20, 1)
    axes[0].plot(np.convolve(records[name], np.ones(window) / window, "valid"), label=name)
axes[0].set(xlabel="optimizer step", ylabel="term of the loss", yscale="log")
axes[1].plot(records["open gates"], label="MiMuon, tau = 0.005")
axes[1].set(xlabel="optimizer step", ylabel="share of open gates", ylim=(-0.05, 1.05))
for one in axes:
    one.grid(alpha=0.3)
    one.legend()
plt.show()

# %% [markdown]
# ## What it finds
#
# The one-to-one head needs no suppression of overlapping boxes. The figure shows held-out scenes
# with the true boxes in thin white lines, and detections with a score above 0.25 in orange.


# %%
@nnx.jit
def find(model, images):
    """The best detections in every image."""
    return end_to_end(model(images / 255.0).one_to_one, SIZE, max_detections=20)


examples = evaluation_batches(held_out, size=SIDE, batch_size=BATCH)[0]
found = jax.tree.map(np.asarray, find(model, examples["image"]))
true = targets(examples)
figure, every = plt.subplots(2, 4, figsize=(12, 6.2), layout="constrained")
for i, axes in enumerate(every.flat):
    rows = examples["valid"][i]
    show(axes, examples["image"][i], true.boxes[i][rows], [""] * rows.sum(), "white")
    rows = found.scores[i] > 0.25
    names = [f"{c}: {s:.2f}" for c, s in zip(found.classes[i][rows], found.scores[i][rows])]
    show(axes, examples["image"][i], found.boxes[i][rows], names, "orange")
figure.suptitle("held-out scenes: true boxes in white, detected digits with scores in orange")
plt.show()
