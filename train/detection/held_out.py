"""Evaluation of a detector on held-out pictures: losses, mAP, tables, curves, drawings."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int32
from PIL import Image

from models.yolo26 import Detections, Outputs, Raw, end_to_end, non_maximum_suppression
from models.yolo26.assignment import Targets
from models.yolo26.boxes import corners
from models.yolo26.loss import detection_loss
from train.data.detection import evaluation_batches
from train.data.pictures import Pictures
from train.detection.average_precision import Evaluation, evaluate
from train.detection.coco import coco_numbers
from train.detection.drawing import draw_detections
from train.detection.matching import Claim, claim_best_free, join, match
from train.detection.report import class_table, draw_curves
from train.mesh import batch_sharding
from train.task import Tree, split_batch

CONFIDENCE = 0.001  # detections of a score at or below it do not count
NOTHING = -100.0  # a logit that adds nothing to the loss

Detect = Callable[[Tree, Tree, Tree], Outputs]  # params, model_state, batch -> raw outputs
Metrics = dict[str, Float[Array, ""]]


class Judged(NamedTuple):
    """Detections of a batch and what they are compared with; replicated on all devices."""

    rows: Float[Array, "B K 6"]  # corners in pixels, score, class
    targets: Targets
    pictures: Int32[Array, "B"]  # their indices; -1 for padding
    scale: Float[Array, "B 2"]  # pixels of the input per pixel of the picture
    losses: Metrics


def pixels(batch: Tree) -> Float[Array, "B S S 3"]:
    """Images in the form of the model's input."""
    return batch["image"].astype(jnp.float32) / 255.0


def batch_targets(batch: Tree) -> Targets:
    """Objects in the form of the loss: corners in pixels."""
    side = batch["image"].shape[1]
    return Targets(corners(batch["boxes"] * side), batch["labels"], batch["valid"])


def named_terms(terms: Metrics) -> Metrics:
    """The terms of the one-to-one head, and their sum as the `loss` of records and curves.

    The objective weighs both heads, with weights that change during a run; this sum is comparable.
    """
    return {"loss": sum(terms.values(), jnp.zeros(())), **terms}


class HeldOut:
    """Judges a detector on held-out pictures.

    Args:
        detect: the model.
        pictures: the held-out part.
        side: of the network's input, in pixels.
        batch_size: pictures per batch.
        max_detections: largest number of detections per image.
        mesh: where the model runs.
        claim: which detection gets an object that several overlap.
        small: pixels; see `detection_loss`.
    """

    def __init__(
        self,
        detect: Detect,
        pictures: Pictures,
        *,
        side: int,
        batch_size: int,
        max_detections: int,
        mesh: Mesh,
        claim: Claim = claim_best_free,
        small: float = 16.0,
    ) -> None:
        self._claim = claim
        self.names, self.mesh, self.batch_size = pictures.names, mesh, batch_size
        self.batches: grain.MapDataset = evaluation_batches(
            pictures, size=side, batch_size=batch_size
        )
        size = (side, side)

        def judged(params: Tree, model_state: Tree, batch: Tree, suppress: bool) -> Judged:
            many, one = detect(params, model_state, batch)
            found = (
                non_maximum_suppression(many, size, max_detections=max_detections)
                if suppress
                else end_to_end(one, size, max_detections=max_detections)
            )
            filling = batch["index"][:, None, None] < 0
            many, one = (Raw(d, jnp.where(filling, NOTHING, x)) for d, x in (many, one))
            targets = batch_targets(batch)
            _, terms = detection_loss(many, one, targets, size=size, weight=0.0, small=small)
            return Judged(rows(found), targets, batch["index"], batch["scale"], named_terms(terms))

        self._judged = jax.jit(
            judged, static_argnames="suppress", out_shardings=NamedSharding(mesh, P())
        )

    def metrics(self, params: Tree, model_state: Tree) -> dict[str, float]:
        """Losses (means over pictures), and precision, recall and mAP of the one-to-one head."""
        found = self._found(params, model_state, suppress=False)
        weights = [len(x.pictures) for x in found]
        means = {
            name: float(np.average([x.losses[name] for x in found], weights=weights))
            for name in found[0].losses
        }
        return means | self._evaluate(found).summary()

    def report(self, params: Tree, model_state: Tree, directory: Path, *, pictures: int) -> str:
        """Judges both heads; writes tables, curves, and the first pictures with detections.

        Args:
            params: of the model.
            model_state: running statistics of the model.
            directory: of the run.
            pictures: number of pictures to draw.

        Returns:
            The table of the one-to-one head, and a line about the other.
        """
        one, many = (
            self._found(params, model_state, suppress=suppress) for suppress in (False, True)
        )
        best, other = (self._evaluate(found) for found in (one, many))
        table = class_table(best, self.names)
        if jax.process_index() == 0:
            text = (
                f"one-to-one head\n{table}\n{self._coco(one)}\n\n"
                "one-to-many head, non-maximum suppression\n"
                f"{class_table(other, self.names)}\n{self._coco(many)}\n"
            )
            (directory / "average_precision.txt").write_text(text, encoding="utf-8")
            draw_curves(best, self.names, directory / "precision_recall.png")
        self._draw(params, model_state, directory / "predictions", pictures)
        map50, map50_95 = (other.summary()[name] for name in ("map50", "map50_95"))
        return (
            f"{table}\none-to-many head with non-maximum suppression: AP50 {map50:.3f}, "
            f"AP50-95 {map50_95:.3f}"
        )

    def _found(self, params: Tree, model_state: Tree, *, suppress: bool) -> list[Any]:
        """`Judged` of all batches, without padding, on the host."""
        found = []
        for _, judged in self._passes(params, model_state, suppress=suppress):
            real = judged.pictures >= 0
            arrays = jax.tree.map(lambda x, real=real: x[real], judged._replace(losses={}))
            found.append(arrays._replace(losses=judged.losses))
        return found

    def _evaluate(self, found: Sequence[Any]) -> Evaluation:
        """Average precision of the detections."""
        classes = len(self.names)
        return evaluate(
            join(
                match(x.rows, *x.targets, classes=classes, confidence=CONFIDENCE, claim=self._claim)
                for x in found
            )
        )

    def _coco(self, found: Sequence[Any]) -> str:
        """A line with the numbers of the COCO protocol."""
        detections, targets, scale = (
            jax.tree.map(lambda *x: np.concatenate(x), *parts)
            for parts in zip(*((x.rows, x.targets, x.scale) for x in found), strict=True)
        )
        numbers = coco_numbers(
            detections, *targets, scale=scale, classes=len(self.names), confidence=CONFIDENCE
        )
        known = [f"{name} {value:.3f}" for name, value in numbers.items() if value >= 0]
        return f"by the COCO protocol: {', '.join(known) or 'not defined without objects'}"

    def _passes(
        self, params: Tree, model_state: Tree, *, suppress: bool
    ) -> Iterator[tuple[Tree, Any]]:
        """This process's part of every batch, and `Judged` of all of it, on the host."""
        for batch in self.batches.to_iter_dataset(grain.ReadOptions(4, 4)):
            spread = split_batch(batch, batch_sharding(self.mesh))
            yield (
                batch,
                jax.device_get(self._judged(params, model_state, spread, suppress=suppress)),
            )

    def _draw(self, params: Tree, model_state: Tree, directory: Path, count: int) -> None:
        """Draws detections onto the first pictures as the network sees them; each process its own.

        All processes have to pass the same batches through the model.
        """
        directory.mkdir(exist_ok=True)
        passes = self._passes(params, model_state, suppress=False)
        for batch, found in itertools.islice(passes, -(-count // self.batch_size)):
            row_of = {int(number): row for row, number in enumerate(found.pictures)}
            for image, number in zip(batch["image"], batch["index"].tolist(), strict=True):
                if not 0 <= number < count:
                    continue
                row = row_of[number]
                objects = found.targets.boxes[row][found.targets.valid[row]]
                drawn = draw_detections(
                    Image.fromarray(image), found.rows[row], self.names, objects=objects
                )
                drawn.save(directory / f"{number:05d}.png")


def rows(found: Detections) -> Float[Array, "B K 6"]:
    """Detections as rows of corners, score and class."""
    columns = (found.scores, found.classes.astype(jnp.float32))
    return jnp.concatenate([found.boxes, *(x[:, :, None] for x in columns)], -1)
