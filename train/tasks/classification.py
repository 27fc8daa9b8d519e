"""Image classification: a residual network on CIFAR-10, or on handwritten digits."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import P
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from models.classifier import ResNet, ResNetConfig, matrix_dimension_numbers, small
from train.classes import Classify
from train.config import Config
from train.data.labelled import (
    ImageData,
    LabelledImages,
    read_images,
    training_batches,
    with_label_noise,
)
from train.errors import require
from train.files import replacing
from train.fonts import label_of
from train.mesh import batch_sharding
from train.task import Init, Task, Tree, split_batch
from train.warm_start import weights_of_run

# Data parallel: weights are replicated, gradients are summed.
SHARDING_RULES = [(".*", P())]

IMAGES_FILE = "images.json"  # in the run directory

Batch = tuple[Array, Int32[Array, "B"]]  # uint8 [B, H, W, C], labels


class Images(NamedTuple):
    """Names of the classes, and shape, mean and deviation of the training images."""

    names: tuple[str, ...]
    shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # per channel, 0 .. 255
    deviation: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Classification(Config):
    """An image classifier; losses are in nats per image."""

    data: ImageData = field(default_factory=ImageData)
    model: ResNetConfig = field(default_factory=small)
    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes, 0 .. 1; only in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing={self.label_smoothing} must be at least 0 and less than 1",
        )

    def architecture(self) -> tuple[nnx.GraphDef[ResNet], Callable[[PRNGKeyArray], Any]]:
        """The model's graph, and the function that initializes `params` and `model_state`."""
        model = nnx.eval_shape(lambda: ResNet(self.model, rngs=nnx.Rngs(0)))
        graph, _, _ = nnx.split(model, nnx.Param, ...)

        def init(key: PRNGKeyArray) -> tuple[Tree, Tree]:
            model = ResNet(self.model, rngs=nnx.Rngs(key))
            _, params, model_state = nnx.split(model, nnx.Param, ...)
            return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

        return graph, init

    @property
    def class_head(self) -> str:
        """Regular expression for the paths of arrays whose sizes depend on the classes."""
        return "/head/"

    def init(self, directory: Path) -> Init:
        """The function that initializes the network."""
        del directory
        return self.architecture()[1]

    def images(self, directory: Path) -> Images:
        """What the run in a directory knows of its images.

        Raises:
            BadInput: the file is missing, since an earlier release trained the run.
        """
        path = directory / IMAGES_FILE
        require(path.is_file(), f"{path} is missing; the same training command writes it again")
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Images(*(tuple(stored[name]) for name in Images._fields))

    def classifier(self, model: ResNet, images: Images) -> Classify:
        """A function from an image to the probabilities of its classes."""
        graph, state = nnx.split(model)
        standardized = _standardization(images)

        @jax.jit
        def probabilities(state: Tree, pixels: Array) -> Float[Array, "1 K"]:
            return jax.nn.softmax(nnx.merge(graph, state)(standardized(pixels), training=False))

        return lambda image: np.asarray(probabilities(state, jnp.asarray(image[None])))[0]

    def task(self, mesh: Mesh) -> Task:
        """Reads the images and builds the model's functions."""
        training, held_out = read_images(self.data)
        if self.data.label_noise:
            training = with_label_noise(training, self.data.label_noise, seed=self.seed)
        channels, classes = training.images.shape[-1], len(training.names)
        for name, found in (("channels", channels), ("classes", classes)):
            value = getattr(self.model, name)
            require(
                value == found, f"model.{name}={value} must be {found}: the images have {found}"
            )
        graph, init = self.architecture()
        known = _known(training)
        standardized = _standardization(known)

        def loss(
            params: Tree, model_state: Tree, batch: Batch, key: PRNGKeyArray, step: Array
        ) -> Any:
            del key, step
            images, labels = batch
            model = nnx.merge(graph, params, model_state)
            logits = model(standardized(images), training=True)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), self.label_smoothing)
            _, _, moved = nnx.split(model, nnx.Param, ...)
            metrics = {"accuracy": _correct(logits, labels).mean()}
            value = optax.softmax_cross_entropy(logits, targets).mean()
            return value, (nnx.to_pure_dict(moved), metrics)

        def logits(params: Tree, model_state: Tree, images: Array) -> Float[Array, "B K"]:
            return nnx.merge(graph, params, model_state)(standardized(images), training=False)

        evaluate = _evaluation(logits, held_out, self.batch_size, mesh)

        def finish(params: Tree, model_state: Tree, directory: Path) -> str:
            shown = held_out.first(32)
            predicted = jax.jit(logits)(params, model_state, jnp.asarray(shown.images)).argmax(-1)
            _draw(shown, np.asarray(predicted), directory / "predictions.png")
            accuracy = evaluate(params, model_state)["accuracy"]
            return f"accuracy {accuracy:.2%} of {len(held_out.labels)} held-out images"

        return Task(
            init=init,
            loss=loss,
            batches=training_batches(
                training, self.data, batch_size=self.batch_size, seed=self.seed
            ),
            evaluate=evaluate,
            finish=finish,
            matrices=matrix_dimension_numbers,
            sharding_rules=SHARDING_RULES,
            items_per_step=self.batch_size,
            unit="images",
            loss_unit="nats/image",
            data=training.fingerprint() | {"held_out": len(held_out.labels)},
            files={IMAGES_FILE: json.dumps(known._asdict()) + "\n"},
            pretrained=self.pretrained and functools.partial(weights_of_run, self, init),
        )


def _correct(logits: Float[Array, "B K"], labels: Int32[Array, "B"]) -> Float[Array, "B"]:
    """1 if the largest logit is that of the label, else 0."""
    return (logits.argmax(-1) == labels).astype(jnp.float32)


def _known(training: LabelledImages) -> Images:
    """What a classifier has to know of its training images."""
    pixels = training.images.reshape(-1, training.images.shape[-1])
    mean = pixels.mean(0, dtype=np.float64)
    deviation = np.maximum(pixels.std(0, dtype=np.float64), 1e-3)
    height, width, channels = training.images.shape[1:]
    return Images(
        training.names, (height, width, channels), tuple(mean.tolist()), tuple(deviation.tolist())
    )


def _standardization(images: Images) -> Callable[[Array], Float[Array, "B H W C"]]:
    """Subtracts the mean of the training images and divides by their deviation, per channel."""
    mean, deviation = np.asarray(images.mean), np.asarray(images.deviation)
    shift, scale = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, 1 / deviation))
    return lambda images: (images.astype(jnp.float32) - shift) * scale


def _evaluation(
    logits: Callable[[Tree, Tree, Array], Float[Array, "B K"]],
    held_out: LabelledImages,
    batch_size: int,
    mesh: Mesh,
) -> Callable[[Tree, Tree], dict[str, float]]:
    """Mean loss and accuracy of the held-out images; images that fill up a batch have weight 0.

    The batches stay on the devices from one evaluation to the next.
    """
    count = len(held_out.labels)
    size = batch_size * math.ceil(min(1024, count) / batch_size)  # about 1024 at once
    rows = np.arange(-(-count // size) * size)
    weights = (rows < count).astype(np.float32)
    process = slice(jax.process_index(), None, jax.process_count())
    batches = [
        split_batch(
            (held_out.images[part], held_out.labels[part], weights[i : i + size][process]),
            batch_sharding(mesh),
        )
        for i in range(0, len(rows), size)
        for part in [np.minimum(rows[i : i + size], count - 1)[process]]
    ]

    @jax.jit
    def totals(params: Tree, model_state: Tree, images: Array, labels: Array, weight: Array) -> Any:
        found = logits(params, model_state, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(found, labels)
        return (losses * weight).sum(), (_correct(found, labels) * weight).sum()

    def evaluate(params: Tree, model_state: Tree) -> dict[str, float]:
        sums = jax.device_get([totals(params, model_state, *batch) for batch in batches])
        loss, correct = (
            sum(float(x) for x in column) / count for column in zip(*sums, strict=True)
        )
        return {"loss": loss, "accuracy": correct}

    return evaluate


def _draw(shown: LabelledImages, predicted: np.ndarray, path: Path) -> None:
    """A grid of images with their predicted classes; wrong ones are red, with the true class."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    columns = 8
    rows = -(-len(shown.labels) // columns)
    figure = Figure(figsize=(columns * 1.2, rows * 1.4), layout="constrained")
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, label, guess in zip(grid, shown.images, shown.labels, predicted, strict=False):
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
        right = guess == label
        taken, true = (label_of(shown.names[kind], kind) for kind in (guess, label))
        text = taken + ("" if right else f"\nis {true}")
        colour = "black" if right else "tab:red"
        axes.set_title(text, fontsize=8, color=colour, parse_math=False)  # a name may have a $
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
