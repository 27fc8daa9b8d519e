"""Object detection: a YOLO26-style detector on VOC-layout folders, TFDS, or scenes of digits."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import P
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from models.yolo26 import (
    LEARNING_RATE_FACTORS,
    YOLO26,
    Outputs,
    detection_loss,
    end_to_end,
    fold,
    matrix_dimension_numbers,
    non_maximum_suppression,
    one_to_many_weight,
    scaled,
)
from train.config import Config
from train.data.detection import DetectionData, read_pictures, training_batches
from train.detection.held_out import HeldOut, batch_targets, named_terms, pixels, rows
from train.detection.matching import claim_best, claim_best_free
from train.detection.predict import Find
from train.errors import require
from train.task import Init, Task, Tree
from train.warm_start import weights_of_run

# Data parallel: weights are replicated, gradients are summed.
SHARDING_RULES = [(".*", P())]

CLAIMS = {"best_free": claim_best_free, "best": claim_best}

NAMES_FILE = "names.txt"  # in the run directory: the classes, one per line


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Size and dtype of the model."""

    scale: Literal["n", "s", "m", "l", "x"] = "n"
    """Published scale: 2.6, 10.0, 21.9, 26.3 or 59.0 million parameters with 80 classes."""

    width: float | None = None
    """Factor of the channels, for models smaller than the published ones (None: that of the scale;
    0.25 for n)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and attention; parameters, norms and losses are always float32."""

    depthwise_matrices: bool = False
    """Treat depthwise kernels as matrices with 9 rows, as in the published recipe; otherwise they
    are auxiliary parameters."""

    def __post_init__(self) -> None:
        require(
            self.width is None or 0 < self.width <= 4,
            f"model.width={self.width} must be greater than 0 and at most 4; scale x has 1.5",
        )

    def functions(
        self, num_classes: int
    ) -> tuple[nnx.GraphDef[YOLO26], Callable[[PRNGKeyArray], tuple[Tree, Tree]]]:
        """The model's graph, and the function that initializes `params` and `model_state`."""
        config = scaled(self.scale, num_classes)
        if self.width is not None:
            config = dataclasses.replace(config, width=self.width)
        make = functools.partial(YOLO26, config, dtype=jnp.dtype(self.dtype))
        graph, _, _ = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param, ...)

        def init(key: PRNGKeyArray) -> tuple[Tree, Tree]:
            _, params, model_state = nnx.split(make(rngs=nnx.Rngs(key)), nnx.Param, ...)
            return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

        return graph, init


@dataclass(frozen=True, kw_only=True)
class Detection(Config):
    """An object detector; `box`, `cls` and `dfl` are the one-to-one head's, including gains."""

    data: DetectionData = field(default_factory=DetectionData)
    model: Detector = field(default_factory=Detector)

    small_side: Literal[8, 16] = 16
    """Shorter sides of objects, in pixels, are searched as 16 pixels; earlier releases used 8."""

    matching: Literal["best_free", "best"] = "best_free"
    """The object that a detection may claim in an evaluation: the free one of largest overlap, or,
    as in earlier releases, only the one of largest overlap, free or not."""

    average_ramp: float = 2000.0
    """Evaluations use a moving average of the weights whose decay at step t is
    0.9999 (1 - exp(-t / average_ramp))."""

    max_detections: int = 300
    """Maximum number of detections per image."""

    workers: int = 0
    """Number of processes that prefetch batches; 0: threads of this process."""

    pictures: int = 12
    """Number of held-out images to draw at the end of a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.average_ramp < math.inf,
            f"average_ramp={self.average_ramp} must be a finite number of steps > 0",
        )
        require(
            self.mesh_axes == "auto",
            f"mesh_axes={self.mesh_axes} does not support convolutions; use auto",
        )
        for name, least in (("max_detections", 1), ("workers", 0), ("pictures", 0)):
            value = getattr(self, name)
            require(value >= least, f"{name}={value} must be at least {least}")

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are evaluated: always."""
        return True

    @property
    def best(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that chooses the best checkpoint, and which direction is better."""
        return "fitness", "max"

    @property
    def class_head(self) -> str:
        """Regular expression for the paths of arrays whose sizes depend on the classes."""
        return "/one_to_(many|one)/classes/"

    def init(self, directory: Path) -> Init:
        """The function that initializes the detector of a run in a directory."""
        return self.model.functions(len(self.names(directory)))[1]

    def names(self, directory: Path) -> list[str]:
        """The classes of a run in a directory.

        Raises:
            BadInput: the file of classes is missing.
        """
        path = directory / NAMES_FILE
        require(path.exists(), f"{path} is missing; the same training command writes it again")
        return path.read_text(encoding="utf-8").splitlines()

    def finder(self, model: YOLO26, head: Literal["one_to_one", "one_to_many"]) -> Find:
        """A function from a network input to the detections of a trained model."""
        graph, state = nnx.split(fold(model, head=head))
        size = (self.data.size, self.data.size)
        chosen = end_to_end if head == "one_to_one" else non_maximum_suppression

        @jax.jit
        def found(state: Tree, batch: Tree) -> Float[Array, "1 K 6"]:
            raw = getattr(nnx.merge(graph, state)(pixels(batch)), head)
            return rows(chosen(raw, size, max_detections=self.max_detections))

        return lambda image: np.asarray(found(state, {"image": image[None]}))[0]

    def objective(self, graph: nnx.GraphDef[YOLO26], images: int) -> Callable[..., Any]:
        """The loss of the task; the number of images turns steps into epochs."""
        size = (self.data.size, self.data.size)
        epochs = -(-self.steps * self.batch_size // images)

        def loss(
            params: Tree, model_state: Tree, batch: Tree, key: PRNGKeyArray, step: Int32[Array, ""]
        ) -> tuple[Float[Array, ""], tuple[Tree, dict[str, Float[Array, ""]]]]:
            del key  # the loss is deterministic: augmentation is part of the data
            model = nnx.merge(graph, params, model_state)
            many, one = model(pixels(batch), training=True)
            objective, terms = detection_loss(
                many,
                one,
                batch_targets(batch),
                size=size,
                weight=one_to_many_weight(step * self.batch_size // images, epochs),
                small=float(self.small_side),
            )
            model_state = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return objective, (model_state, named_terms(terms) | {"objective": objective})

        return loss

    def task(self, mesh: Mesh) -> Task:
        """Opens the pictures and builds the model's functions."""
        training, held_out = read_pictures(self.data, seed=self.seed)
        graph, init = self.model.functions(len(training.names))

        def detect(params: Tree, model_state: Tree, batch: Tree) -> Outputs:
            return nnx.merge(graph, params, model_state)(pixels(batch))

        evaluation = HeldOut(
            detect,
            held_out,
            side=self.data.size,
            batch_size=self.batch_size,
            max_detections=self.max_detections,
            mesh=mesh,
            claim=CLAIMS[self.matching],
            small=float(self.small_side),
        )
        return Task(
            init=init,
            loss=self.objective(graph, len(training)),
            batches=training_batches(
                training,
                self.data,
                batch_size=self.batch_size,
                steps=self.steps,
                seed=self.seed,
            ),
            evaluate=evaluation.metrics,
            finish=functools.partial(evaluation.report, pictures=self.pictures),
            matrices=functools.partial(
                matrix_dimension_numbers, depthwise=self.model.depthwise_matrices
            ),
            sharding_rules=SHARDING_RULES,
            items_per_step=self.batch_size,
            unit="images",
            loss_unit="box + cls + dfl",
            data={"training_" + k: v for k, v in training.fingerprint().items()}
            | {"held_out_" + k: v for k, v in held_out.fingerprint().items()},
            files={NAMES_FILE: "\n".join(training.names) + "\n"},
            best=self.best,
            pretrained=self.pretrained and functools.partial(weights_of_run, self, init),
            workers=self.workers,
            average=lambda t: 0.9999 * (1 - jnp.exp(-t / self.average_ramp)),
            rate_factors=LEARNING_RATE_FACTORS,
        )
