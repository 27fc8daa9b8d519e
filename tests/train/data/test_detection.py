"""Batches of detection data: boxes against pixels, order, sharding, and what a mosaic shows."""

import contextlib
import itertools
import pickle
from typing import Any

import cloudpickle
import jax
import numpy as np
import pytest
from PIL import Image

from tests.train.data.boxes import Drawn, extent, rectangle
from train.data.augment import Augmentation
from train.data.detection import DetectionData, evaluation_batches, read_pictures, training_batches
from train.data.digits import DigitScenes
from train.data.pictures import Cache, Picture
from train.errors import BadInput
from train.loop import _batches

SIZE = 128
# Each picture's rectangle has a colour of its own; of the channel that is high, the others low.
COLOURS = list(itertools.product((80, 250), repeat=3))[1:7]


def drawn_rectangles(count: int = 6) -> Drawn:
    """Pictures of several sizes, each with a rectangle of its own colour."""
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(count):
        width, height = (int(side) for side in rng.integers(80, 300, 2))
        left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        box = left, top, left + int(width * rng.uniform(0.2, 0.5)), top + height // 3
        image = rectangle((width, height), box, COLOURS[index])
        boxes = np.asarray([box], np.float32)
        pictures.append(Picture(image, (width, height), boxes, np.asarray([index], np.int32)))
    return Drawn(pictures, tuple("abcdef"))


def plain(**changes: float) -> Augmentation:
    """Augmentation without changes of colour, by which the tests find rectangles."""
    return Augmentation(hue=0, saturation=0, brightness=0, **changes)


def corners(batch: dict[str, np.ndarray], row: int) -> np.ndarray:
    """The valid boxes of a row, in pixels."""
    centre, side = np.split(batch["boxes"][row][batch["valid"][row]] * SIZE, 2, axis=1)
    return np.concatenate([centre - side / 2, centre + side / 2], axis=1)


def mask(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels that a colour on the dark background covers by at least half."""
    axis = np.asarray(colour, float) - 20
    difference = image - 20.0
    share = difference @ axis / (axis @ axis)
    return (share >= 0.5) & (np.abs(difference - share[..., None] * axis).max(-1) < 15)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_every_box_is_the_extent_of_its_rectangle_in_pixels(mosaic: float):
    pictures = drawn_rectangles()
    data = DetectionData(size=SIZE, max_objects=4, augmentation=plain(mosaic=mosaic))
    batches: Any = training_batches(pictures, data, batch_size=10, steps=1000, seed=0)
    checked = 0
    for step in range(6):
        batch = batches[step]
        for row in range(10):
            labels = batch["labels"][row][batch["valid"][row]]
            for box, label in zip(corners(batch, row), labels, strict=True):
                if (labels == label).sum() > 1 or (box[2:] - box[:2]).min() < 6:
                    continue  # the same picture twice in a mosaic; too few pixels to tell
                # a copy that lost its box may lie elsewhere in the mosaic: look 4 pixels around
                x, y = np.maximum(box[:2].astype(int) - 4, 0)
                right, bottom = box[2:].astype(int) + 5
                part = batch["image"][row][y:bottom, x:right]
                found = np.add(extent(mask(part, COLOURS[label])), (x, y, x, y))
                np.testing.assert_allclose(box, found, atol=1, err_msg=f"{step} {row} {label}")
                checked += 1
    assert checked > (80 if mosaic else 50)


def test_objects_that_leave_the_picture_are_dropped_and_those_that_stay_are_kept():
    """A rectangle either shows more than a tenth of its area, or has no box."""
    pictures = drawn_rectangles()
    data = DetectionData(size=SIZE, augmentation=plain(mosaic=0, shift=0.5, zoom=0.9))
    batches: Any = training_batches(pictures, data, batch_size=10, steps=1000, seed=1)
    kept = gone = 0
    for step in range(6):
        batch = batches[step]
        for row in range(10):
            shown = [i for i, c in enumerate(COLOURS) if mask(batch["image"][row], c).sum() > 9]
            boxes = corners(batch, row)
            assert len(boxes) <= 1
            kept += len(boxes)
            gone += len(boxes) == 0
            if len(boxes):
                assert (boxes[0, 2:] - boxes[0, :2]).min() > 2
                assert boxes.min() >= -1e-4
                assert boxes.max() <= SIZE + 1e-4
            elif shown:
                left, top, right, bottom = extent(mask(batch["image"][row], COLOURS[shown[0]]))
                edges = left == 0, top == 0, right == SIZE, bottom == SIZE
                assert any(edges) or min(right - left, bottom - top) <= 3
    assert kept > 30
    assert gone > 3


def test_without_augmentation_a_picture_is_letterboxed():
    pictures = drawn_rectangles()
    still = plain(mosaic=0, zoom=0, shift=0, mirror=0)
    data = DetectionData(size=SIZE, max_objects=1, augmentation=still)
    training: Any = training_batches(pictures, data, batch_size=6, steps=1, seed=0)[0]
    evaluation: Any = evaluation_batches(pictures, size=SIZE, batch_size=6)[0]
    order = training["labels"][:, 0]
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(training["boxes"], evaluation["boxes"][order], atol=1.5 / SIZE)


def test_pictures_and_boxes_are_mirrored_together():
    pictures = drawn_rectangles()

    def batch(chance: float) -> Any:
        data = DetectionData(size=SIZE, max_objects=4, augmentation=plain(mirror=chance))
        return training_batches(pictures, data, batch_size=60, steps=1000, seed=0)[0]

    never, half, always = batch(0), batch(0.5), batch(1)
    np.testing.assert_array_equal(always["image"], never["image"][:, :, ::-1])
    mirrored = never["boxes"] * (-1, 1, 1, 1) + never["valid"][..., None] * (1, 0, 0, 0)
    np.testing.assert_allclose(always["boxes"], mirrored, atol=1e-6)
    same = [np.array_equal(a, b) for a, b in zip(half["image"], never["image"], strict=True)]
    assert 0.3 < np.mean(same) < 0.7
    for row, is_same in enumerate(same):
        expected = never if is_same else always
        np.testing.assert_array_equal(half["boxes"][row], expected["boxes"][row])


def test_a_batch_depends_on_seed_and_step_alone():
    scenes = drawn_rectangles()
    data = DetectionData(size=64, max_objects=8)
    batches: Any = training_batches(scenes, data, batch_size=4, steps=100, seed=3)
    expected = batches[7]
    copied = cloudpickle.loads(cloudpickle.dumps(batches))  # as Grain sends it to workers
    direct: Any = training_batches(Cache(scenes, 0), data, batch_size=4, steps=100, seed=3)
    for again in (batches[7], copied[7], direct[7], next(iter(batches[7:].to_iter_dataset()))):
        for name, array in expected.items():
            np.testing.assert_array_equal(again[name], array)
    other: Any = training_batches(scenes, data, batch_size=4, steps=100, seed=4)
    assert not np.array_equal(other[7]["image"], expected["image"])
    assert expected["image"].dtype == np.uint8
    assert expected["boxes"].dtype == np.float32
    assert expected["labels"].dtype == np.int32


@pytest.mark.slow
def test_batches_made_in_processes_are_those_of_this_one():
    pictures = drawn_rectangles()
    data = DetectionData(size=64, max_objects=8)
    batches: Any = training_batches(pictures, data, batch_size=4, steps=100, seed=3)
    with contextlib.closing(_batches(batches, 5, 2)) as made:
        for step in range(5, 9):
            for name, array in next(made).items():
                np.testing.assert_array_equal(array, batches[step][name])


def test_every_pass_shows_every_picture_once_in_an_order_of_its_own():
    pictures = drawn_rectangles()
    data = DetectionData(size=SIZE, max_objects=1, augmentation=plain(mosaic=0, shift=0, zoom=0))
    batches: Any = training_batches(pictures, data, batch_size=3, steps=10, seed=0)
    passes = [
        [*batches[2 * p]["labels"][:, 0], *batches[2 * p + 1]["labels"][:, 0]] for p in range(4)
    ]
    assert all(sorted(one) == [0, 1, 2, 3, 4, 5] for one in passes)
    assert any(one != passes[0] for one in passes)


def test_processes_share_a_batch_whatever_their_number(monkeypatch: pytest.MonkeyPatch):
    pictures = drawn_rectangles()
    data = DetectionData(size=SIZE, max_objects=4)

    def parts(count: int) -> list[list[dict[str, np.ndarray]]]:
        found = []
        for process in range(count):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            monkeypatch.setattr(jax, "process_count", lambda: count)
            training: Any = training_batches(pictures, data, batch_size=4, steps=10, seed=0)
            evaluation: Any = evaluation_batches(pictures, size=SIZE, batch_size=4)
            found.append([training[5], *evaluation])
        return found

    (whole,), halves = parts(1), parts(2)
    for i, batch in enumerate(whole):
        for name, array in batch.items():
            for process in range(2):
                np.testing.assert_array_equal(halves[process][i][name], array[process::2])
    indices = np.concatenate([batch["index"] for half in halves for batch in half[1:]])
    assert sorted(indices) == [-1, -1, 0, 1, 2, 3, 4, 5]


def test_mosaic_ends_with_the_last_passes():
    """With six pictures of one class each, only a mosaic has several labels."""
    pictures = drawn_rectangles()
    data = DetectionData(
        size=SIZE, max_objects=4, augmentation=plain(plain_epochs=2, shift=0, zoom=0)
    )
    batches: Any = training_batches(pictures, data, batch_size=3, steps=10, seed=0)
    counts = [batches[step]["valid"].sum(1) for step in range(10)]
    # 30 pictures in all, the last 12 of them alone
    assert all(count.max() <= 1 for count in counts[6:])
    assert max(count.max() for count in counts[:6]) > 1
    short: Any = training_batches(pictures, data, batch_size=3, steps=4, seed=0)
    assert short[0]["valid"].sum(1).max() <= 1


def test_of_too_many_objects_the_smallest_are_left_out_and_counted(
    capsys: pytest.CaptureFixture[str],
):
    boxes = np.asarray([[0, 0, 10, 10], [20, 0, 60, 40], [0, 20, 20, 40], [30, 50, 60, 64]])
    labels = np.arange(4, dtype=np.int32)
    picture = Picture(rectangle((64, 64), boxes[0], COLOURS[0]), (64, 64), boxes * 1.0, labels)
    still = plain(mosaic=0, zoom=0, shift=0, mirror=0)
    data = DetectionData(size=64, max_objects=2, augmentation=still)
    batches: Any = training_batches(Drawn([picture]), data, batch_size=2, steps=9, seed=0)
    for step in range(3):
        assert batches[step]["labels"].tolist() == [[1, 3]] * 2
        assert batches[step]["dropped"].tolist() == [2, 2]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "more than data.max_objects=2 objects" in said[0]


def test_evaluation_boxes_go_back_to_their_pictures():
    pictures = drawn_rectangles()
    batches: Any = evaluation_batches(pictures, size=SIZE, batch_size=4)
    assert len(batches) == 2
    seen = []
    for batch in batches:
        for row, index in enumerate(batch["index"]):
            if index < 0:
                assert not batch["valid"][row].any()
                continue
            seen.append(int(index))
            picture = pictures.pictures[index]
            assert tuple(batch["size"][row]) == picture.size
            offset, scale = np.tile(batch["offset"][row], 2), np.tile(batch["scale"][row], 2)
            back = (corners(batch, row) - offset) / scale
            np.testing.assert_allclose(back, picture.boxes, atol=1e-3)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_the_cache_keeps_what_fits_and_changes_nothing():
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    drawn = Drawn([Picture(Image.new("RGB", (256, 256)), (256, 256), *nothing)])

    class Fresh(Drawn):
        def load(self, index: int, needed: int) -> Picture:
            return super().load(0, needed)._replace(size=(index, needed))

    cache = Cache(Fresh(drawn.pictures), 1)  # 256 KiB each in memory
    first = [cache.load(i, 256) for i in range(10)]
    assert [picture.size for picture in first] == [(i, 256) for i in range(10)]
    assert [cache.load(i, 256) is first[i] for i in range(10)] == [True] * 4 + [False] * 6
    scenes = Cache(DigitScenes(10, 64), 1)
    assert pickle.loads(pickle.dumps(scenes)).names == scenes.names
    assert len(pickle.dumps(scenes)) < 1000


def test_the_default_data_are_digit_scenes():
    training, held_out = read_pictures(DetectionData(size=64), seed=5)
    assert training == DigitScenes(2000, 64, seed=5)
    assert held_out == DigitScenes(200, 64, held_out=True, seed=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 100}, r"data\.size=100 must be a positive multiple of 32"),
        ({"max_objects": 0}, r"data\.max_objects=0 must be at least 1"),
        ({"cache": -1}, r"data\.cache=-1 must be at least 0 MiB"),
        ({"classes": ("a", "a")}, "repeat a name"),
        *(({"classes": ("b", x)}, "a name is not empty, and has no line") for x in ("", "a\nb")),
    ],
)
def test_impossible_data_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(BadInput, match=message):
        DetectionData(**fields)


def test_digit_scenes_have_their_own_classes():
    with pytest.raises(BadInput, match="do not fit digit scenes"):
        read_pictures(DetectionData(classes=("cat",)), seed=0)
