"""Held-out pictures judged with models that know all answers, and none."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from models.yolo26 import Outputs, Raw
from models.yolo26.boxes import anchors, corners
from train.data.digits import DigitScenes
from train.detection.held_out import HeldOut
from train.mesh import make_mesh

SIDE, SCENES = 64, 5


def oracle(params, model_state, batch):
    """Cell i predicts object i; the one-to-many head predicts every object twice."""
    del model_state
    centres, strides = (jnp.asarray(x)[None] for x in anchors(SIDE, SIDE))
    boxes = corners(batch["boxes"] * SIDE)
    count, rows = len(centres[0]), boxes.shape[1]

    def head(copies):
        cell = jnp.arange(count) % rows
        used = (jnp.arange(count)[None] < copies * rows) & batch["valid"][:, cell]
        goal = boxes[:, cell]
        low, high = centres - goal[..., :2], goal[..., 2:] - centres
        kind = batch["labels"][:, cell, None] == jnp.arange(10)[None, None]
        logits = jnp.where(used[..., None] & kind, params, -20.0)
        return Raw(jnp.concatenate([low, high], -1) / strides[..., None], logits)

    return Outputs(head(2), head(1))


@pytest.fixture(scope="module")
def held_out():
    return HeldOut(
        oracle,
        DigitScenes(SCENES, SIDE, held_out=True, seed=0),
        side=SIDE,
        batch_size=2,
        max_detections=30,
        mesh=make_mesh("data=1"),
    )


def test_the_right_answers_are_perfect_and_filling_changes_nothing(held_out):
    found = held_out.metrics(jnp.float32(20.0), {})
    assert [found["map50"], found["fitness"]] == pytest.approx([0.995, 0.995])
    assert found["precision"] == found["recall"] == 1
    assert np.isfinite([*found.values()]).all()


def test_no_answers_are_worth_nothing(held_out):
    found = held_out.metrics(jnp.float32(-20.0), {})
    assert found["map50"] == found["fitness"] == 0


class Backgrounds(DigitScenes):
    """Scenes without annotated objects."""

    @property
    def most_objects(self):
        return 0

    def load(self, index, needed):
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        return super().load(index, needed)._replace(boxes=boxes, labels=labels)


def guess(params, model_state, batch):
    """The first two cells always predict a 3."""
    del model_state
    cells, strides = (jnp.asarray(x) for x in anchors(SIDE, SIDE))
    seen = (jnp.arange(len(cells)) < 2)[:, None] & (jnp.arange(10) == 3)[None]
    sides = jnp.ones((len(batch["index"]), len(cells), 4)) + 0 * strides[None, :, None]
    logits = jnp.broadcast_to(jnp.where(seen, params, -20.0), (len(sides), *seen.shape))
    return Outputs(Raw(sides, logits), Raw(sides, logits))


def test_pictures_without_objects_count_false_positives(tmp_path):
    pictures = Backgrounds(SCENES, SIDE, held_out=True, seed=0)
    options = {"side": SIDE, "batch_size": 2, "max_detections": 30, "mesh": make_mesh("data=1")}
    held_out = HeldOut(guess, pictures, **options)
    found = held_out.metrics(jnp.float32(2.0), {})
    assert np.isfinite([*found.values()]).all()
    assert found["recall"] == found["precision"] == found["map50"] == found["fitness"] == 0
    assert found["false_positives"] == 2 * SCENES
    assert found["cls"] > 0
    text = held_out.report(jnp.float32(2.0), {}, tmp_path, pictures=2)
    assert "all         0     0.000  0.000 0.000   0.000" in text
    written = (tmp_path / "average_precision.txt").read_text()
    assert written.count("by the COCO protocol: not defined without objects") == 2
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_the_report_has_both_heads_by_both_protocols_and_pictures(held_out, tmp_path):
    text = held_out.report(jnp.float32(20.0), {}, tmp_path, pictures=3)
    assert "AP50 0.995, AP50-95 0.995" in text
    written = (tmp_path / "average_precision.txt").read_text()
    assert written.count("by the COCO protocol: AP 1.000, AP50 1.000, AP75 1.000") == 2
    assert sorted(x.name for x in (tmp_path / "predictions").iterdir()) == [
        f"{i:05d}.png" for i in range(3)
    ]
    with Image.open(tmp_path / "predictions" / "00000.png") as drawn:
        assert drawn.size == (640, 640)
        assert np.asarray(drawn).std() > 1
    assert (tmp_path / "precision_recall.png").exists()
