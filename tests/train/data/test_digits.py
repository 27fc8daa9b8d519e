"""Scenes of digits: exact boxes, and separate scans for training and held-out scenes."""

import pickle

import numpy as np
import pytest

from tests.train.data.boxes import extent
from train.data import digits
from train.data.digits import DigitScenes
from train.data.pictures import Picture


def test_a_scene_depends_on_seed_split_and_index_alone():
    scenes = DigitScenes(10, 96)
    first = [scenes.load(i, 0) for i in range(3)]
    again = [pickle.loads(pickle.dumps(scenes)).load(i, 0) for i in (2, 1, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    others = (DigitScenes(10, 96, seed=1), DigitScenes(10, 96, held_out=True))
    for other in others:
        assert not np.array_equal(other.load(0, 0).image, first[0].image)
        assert other.fingerprint()["crc32"] != scenes.fingerprint()["crc32"]


def test_scenes_have_several_sizes_classes_and_counts():
    scenes = DigitScenes(200, 96)
    pictures = [scenes.load(i, 0) for i in range(200)]
    assert {picture.image.size for picture in pictures} == {(96, 96)}
    counts = {len(picture.labels) for picture in pictures}
    assert counts == {1, 2, 3, 4, 5, 6}
    assert scenes.most_objects == 6
    labels = np.concatenate([picture.labels for picture in pictures])
    assert np.bincount(labels, minlength=10).min() > 30
    boxes = np.concatenate([picture.boxes for picture in pictures])
    assert boxes.min() >= 0
    assert boxes.max() <= 96
    heights = boxes[:, 3] - boxes[:, 1]
    assert heights.min() >= 8
    assert heights.max() > 2.5 * heights.min()


def test_digits_hardly_overlap():
    for index in range(50):
        boxes = DigitScenes(50, 96).load(index, 0).boxes.tolist()
        for i, a in enumerate(boxes):
            assert all(digits._covered(a, b) <= 0.1 for b in boxes[:i])


def test_boxes_are_the_extent_of_the_ink_in_pixels(monkeypatch: pytest.MonkeyPatch):
    """On a black background, the extent of a single digit is its box."""
    monkeypatch.setattr(digits, "OBJECTS", (1, 1))
    monkeypatch.setattr(digits, "_background", lambda _, size: np.zeros((size, size, 3), "f"))

    def paint_white(
        rng: np.random.Generator, canvas: np.ndarray, cover: np.ndarray, place: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        box = real(rng, canvas, cover, place)
        height, width = cover.shape
        canvas[place[1] : place[1] + height, place[0] : place[0] + width] = cover[:, :, None] * 255
        return box

    real = digits._paint
    monkeypatch.setattr(digits, "_paint", paint_white)
    for index in range(40):
        picture: Picture = DigitScenes(40, 160).load(index, 0)
        ink = np.asarray(picture.image)[:, :, 0] >= digits.INK * 255 - 0.5
        np.testing.assert_array_equal(picture.boxes, [extent(ink)])


def test_every_digit_stands_out_from_what_is_behind_it():
    for index in range(40):
        picture = DigitScenes(40, 160).load(index, 0)
        image = np.asarray(picture.image, float)
        for left, top, right, bottom in picture.boxes.astype(int):
            low, high = np.percentile(image[top:bottom, left:right], [2, 98], axis=(0, 1))
            assert (high - low).max() > 30


def test_training_and_held_out_scenes_share_no_scan(monkeypatch: pytest.MonkeyPatch):
    """Each scan has its number in one pixel, and the numbers in scenes are collected."""
    scans, labels = digits._scans()
    marked = np.ones_like(scans)
    marked[:, 0, 0] = np.arange(len(scans))
    seen: dict[bool, set[int]] = {False: set(), True: set()}

    class Seen(np.ndarray):
        part = False

        def __getitem__(self, key):
            if isinstance(key, int):
                seen[Seen.part].add(key)
            return np.asarray(super().__getitem__(key))

    monkeypatch.setattr(digits, "_scans", lambda: (marked.view(Seen), labels))
    for part in (False, True):
        Seen.part = part
        scenes = DigitScenes(600, 64, held_out=part)
        for index in range(600):
            scenes.load(index, 0)
    assert max(seen[False]) < min(seen[True])
    assert len(seen[False]) > 800
    assert len(seen[True]) > 300
