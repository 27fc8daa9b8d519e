"""Scenes of handwritten digits with exact boxes: detection data that needs no download."""

import functools
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image

from train.data.pictures import Picture

HELD_OUT = 0.2  # fraction of the scans, the last ones, that only held-out scenes show
OBJECTS = (1, 6)  # least and most in a scene
SIDE = (0.14, 0.42)  # height of a digit, as a fraction of the scene's side
CONTRAST = (50.0, 150.0)  # gray levels between a digit and its background
OVERLAP = 0.1  # largest fraction of the smaller of two boxes that the other may cover
INK = 0.3  # a pixel belongs to a digit that covers at least this fraction of it


@dataclass(frozen=True)
class DigitScenes:
    """Scenes composed of scikit-learn's scans of handwritten digits (8 x 8, 16 gray levels).

    Scene `i` depends only on the seed, the split and `i`. Digits differ in size, position, colour
    and width; backgrounds differ in colour, gradient and noise. Training and held-out scenes have
    no scans in common.
    """

    count: int
    size: int  # side of a scene, in pixels
    held_out: bool = False
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Class names: the ten digits."""
        return tuple("0123456789")

    @property
    def most_objects(self) -> int:
        """The largest number of objects in a scene."""
        return OBJECTS[1]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, needed: int) -> Picture:
        """Composes a scene, always at full size."""
        del needed
        rng = np.random.default_rng([self.seed, int(self.held_out), int(index)])
        canvas = _background(rng, self.size)
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for _ in range(int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))):
            cover, label = self._digit(rng)
            place = _place(rng, cover, boxes, self.size)
            if place is not None:
                boxes.append(_paint(rng, canvas, cover, place))
                labels.append(label)
        image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
        return Picture(
            image,
            (self.size, self.size),
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(labels, np.int32),
        )

    def fingerprint(self) -> dict[str, int | str]:
        """Counts, and a checksum of the scans and of the first scene."""
        scans, labels = _scans()
        crc32 = zlib.crc32(labels.tobytes(), zlib.crc32(scans.tobytes()))
        first = self.load(0, self.size)
        crc32 = zlib.crc32(first.boxes.tobytes(), zlib.crc32(first.image.tobytes(), crc32))
        return {"images": self.count, "classes": 10, "side": self.size, "crc32": crc32}

    def _digit(self, rng: np.random.Generator) -> tuple[Float32[np.ndarray, "h w"], int]:
        """Draws a scan and its size; returns the covered fraction of each pixel, and its label."""
        scans, labels = _scans()
        first_held_out = round(len(scans) * (1 - HELD_OUT))
        low, high = (first_held_out, len(scans)) if self.held_out else (0, first_held_out)
        index = int(rng.integers(low, high))
        scan = scans[index]
        rows, columns = np.flatnonzero(scan.any(1)), np.flatnonzero(scan.any(0))
        scan = scan[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height = self.size * np.exp(rng.uniform(*np.log(SIDE)))
        width = height * scan.shape[1] / scan.shape[0] * rng.uniform(0.8, 1.25)
        shape = max(round(width), 3), max(round(height), 3)
        enlarged = Image.fromarray(scan).resize(shape, Image.Resampling.BICUBIC)
        return np.asarray(enlarged).clip(0, 1), int(labels[index])


@functools.cache
def _scans() -> tuple[Float32[np.ndarray, "scans 8 8"], Int32[np.ndarray, "scans"]]:
    """All 1797 scans, ink from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits  # takes a second

    digits: Any = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int32)


def _background(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "S S 3"]:
    """A colour, a gradient and noise."""
    colour = rng.uniform(30, 225, 3)
    slope = rng.uniform(-50, 50, (2, 3))
    at = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    smooth = colour + at[:, None, None] * slope[0] + at[None, :, None] * slope[1]
    amount = int(rng.integers(1, 25))
    noise = rng.integers(-amount, amount + 1, (size, size, 1), dtype=np.int8)
    return (smooth + noise).astype(np.float32)


def _ink_box(cover: Float32[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The bounds of a digit in its rectangle: left, top, right, bottom."""
    ink = cover >= INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(
    rng: np.random.Generator,
    cover: Float32[np.ndarray, "h w"],
    boxes: list[tuple[int, int, int, int]],
    size: int,
) -> tuple[int, int] | None:
    """Draws the corner of a rectangle, at most 20 times; None if there is not enough room."""
    height, width = cover.shape
    left, top, right, bottom = _ink_box(cover)
    for _ in range(20):
        x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        box = x + left, y + top, x + right, y + bottom
        if all(_covered(box, other) <= OVERLAP for other in boxes):
            return x, y
    return None


def _covered(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The fraction of the smaller box that the other one covers."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / smaller


def _paint(
    rng: np.random.Generator,
    canvas: Float32[np.ndarray, "S S 3"],
    cover: Float32[np.ndarray, "h w"],
    place: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Blends a digit into the canvas in a contrasting colour; returns its box."""
    (x, y), (height, width) = place, cover.shape
    behind = canvas[y : y + height, x : x + width]
    level = behind.mean()
    contrast = rng.uniform(*CONTRAST)
    lighter = level + contrast <= 255 and (level - contrast < 0 or rng.random() < 0.5)
    target = np.clip(level + (contrast if lighter else -contrast), 0, 255)
    colour = np.clip(target + rng.uniform(-30, 30, 3), 0, 255)
    behind += cover[:, :, None] * (colour.astype(np.float32) - behind)
    left, top, right, bottom = _ink_box(cover)
    return x + left, y + top, x + right, y + bottom
