"""Augmentation of training pictures: mosaic, zoom, shift, colour, mirroring; one resampling."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from train.data.decoding import GRAY
from train.data.geometry import Placement, draw, fitted_size
from train.data.pictures import Picture, Pictures
from train.errors import require

SMALLEST_SIDE = 2.0  # in pixels of the input: thinner objects are dropped
LARGEST_ASPECT = 100.0
SMALLEST_SHARE = 0.10  # part of an object's area that must remain in the picture
HUES = 255  # Pillow's hue circle has 255 steps: 0 and 255 are both red


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training pictures are varied; with zeros everywhere each is only letterboxed."""

    mosaic: float = 1.0
    """Probability that a picture is joined with three others around a random point."""

    plain_epochs: int = 10
    """Number of passes over the pictures, at the end of the run, without mosaics."""

    zoom: float = 0.5
    """Sizes are multiplied by a number between 1 - zoom and 1 + zoom."""

    shift: float = 0.1
    """Largest distance of the centre from the middle, as a fraction of the input's side."""

    hue: float = 0.015
    """Largest rotation of the hue, as a fraction of the colour circle."""

    saturation: float = 0.7
    """Saturation is multiplied by a number between 1 - saturation and 1 + saturation."""

    brightness: float = 0.4
    """Brightness is multiplied by a number between 1 - brightness and 1 + brightness."""

    mirror: float = 0.5
    """Probability of mirroring left and right; use 0 where that changes objects, as for digits."""

    def __post_init__(self) -> None:
        for name in ("mosaic", "mirror", "hue", "saturation", "brightness"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"data.augmentation.{name}={value} must lie between 0 and 1")
        require(
            0 <= self.zoom < 1,
            f"data.augmentation.zoom={self.zoom} must be at least 0 and less than 1",
        )
        require(
            0 <= self.shift <= 0.5,
            f"data.augmentation.shift={self.shift} must lie between 0 and 0.5",
        )
        require(
            self.plain_epochs >= 0,
            f"data.augmentation.plain_epochs={self.plain_epochs} must be at least 0",
        )


def augmented(
    pictures: Pictures,
    index: int,
    *,
    size: int,
    augmentation: Augmentation,
    mosaic: bool,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "S S 3"], Float[np.ndarray, "N 4"], Int32[np.ndarray, "N"]]:
    """Makes one training picture.

    A mosaic is a canvas of twice the size with four pictures that each touch a random centre with a
    corner: the given one above left, and three drawn from all. Otherwise the canvas is the given
    picture. Longer sides are `size` on the canvas. Then a canvas point `p` goes to
    `gain (p - middle) + shift`. Both maps are composed first, so that a picture is resampled once.
    At last colours are varied and sides mirrored.

    Args:
        pictures: the training part.
        index: the picture.
        size: side of the result, S, in pixels.
        augmentation: how much is varied.
        mosaic: whether the picture may be part of a mosaic.
        rng: source of all randomness.

    Returns:
        The picture (RGB), its boxes (left, top, right, bottom, in pixels), and their labels.
    """
    joined = mosaic and rng.random() < augmentation.mosaic
    chosen = [index, *rng.integers(0, len(pictures), 3).tolist()] if joined else [index]
    most = math.ceil(size * (1 + augmentation.zoom))  # pixels of a longer side as drawn
    loaded = [pictures.load(i, most) for i in chosen]
    placements = [whole(loaded[0], size)]
    if joined:
        centre = rng.integers(size // 2, size * 3 // 2, 2, endpoint=True).tolist()
        placements = around(loaded, centre, size)
    gain, offset = _zoom_and_shift(augmentation, placements[0].window, size, rng)
    canvas = Image.new("RGB", (size, size), GRAY)
    boxes, labels = [], []
    for picture, placement in zip(loaded, placements, strict=True):
        draw(canvas, picture, placement.then(gain, offset))
        own, kept = place_boxes(picture, placement, gain, offset, size)
        boxes.append(own)
        labels.append(picture.labels[kept])
    canvas = recolour(canvas, augmentation, rng.uniform(-1, 1, 3))
    joint = np.concatenate(boxes)
    if rng.random() < augmentation.mirror:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # a third of NumPy's time
        joint[:, [0, 2]] = size - joint[:, [2, 0]]
    return np.asarray(canvas), joint, np.concatenate(labels)


def _zoom_and_shift(
    augmentation: Augmentation,
    window: tuple[float, float, float, float],
    size: int,
    rng: np.random.Generator,
) -> tuple[float, tuple[float, float]]:
    """Gain and offset that move the middle of a canvas to near the middle of the result."""
    zoom, shift = augmentation.zoom, augmentation.shift
    gain = rng.uniform(1 - zoom, 1 + zoom)
    x, y = (rng.uniform(0.5 - shift, 0.5 + shift, 2) * size).tolist()
    return gain, (x - gain * window[2] / 2, y - gain * window[3] / 2)


def whole(picture: Picture, size: int) -> Placement:
    """A picture alone on its canvas, with longer side `size`."""
    width, height = fitted_size(picture.size, size)
    scale = width / picture.size[0], height / picture.size[1]
    return Placement(scale, (0.0, 0.0), (0.0, 0.0, float(width), float(height)))


def around(pictures: list[Picture], centre: list[int], size: int) -> list[Placement]:
    """Four pictures on a canvas of side `2 size`: above left, above right, below left, below right.

    Each has longer side `size` and a corner at the centre.
    """
    placements = []
    for position, picture in enumerate(pictures):
        scale = whole(picture, size).scale
        width, height = fitted_size(picture.size, size)
        left = centre[0] - (0 if position % 2 else width)
        top = centre[1] - (0 if position // 2 else height)
        window = 0.0, 0.0, 2.0 * size, 2.0 * size
        placements.append(Placement(scale, (float(left), float(top)), window))
    return placements


def place_boxes(
    picture: Picture, placement: Placement, gain: float, offset: tuple[float, float], size: int
) -> tuple[Float[np.ndarray, "kept 4"], Int32[np.ndarray, "kept"]]:
    """The boxes of a picture's objects in the result, and which objects remain.

    Boxes are clipped to the canvas, scaled and shifted, clipped to the result; an object is kept
    if both sides are longer than 2 pixels, their ratio is below 100, and more than a tenth of its
    area on the canvas remains.
    """
    left, top, right, bottom = placement.window
    on_canvas = placement.boxes(picture.boxes).clip([left, top] * 2, [right, bottom] * 2)
    moved = on_canvas * gain + np.tile(offset, 2)
    clipped = moved.clip(0, size)
    before, after = moved[:, 2:] - moved[:, :2], clipped[:, 2:] - clipped[:, :2]
    shorter, longer = after.min(axis=1, initial=np.inf), after.max(axis=1, initial=0)
    kept = (
        (shorter > SMALLEST_SIDE)
        & (longer < LARGEST_ASPECT * shorter)
        & (after.prod(axis=1) > SMALLEST_SHARE * before.prod(axis=1))
    )
    (indices,) = np.nonzero(kept)
    return clipped[kept], indices.astype(np.int32)


def recolour(
    image: Image.Image, augmentation: Augmentation, draws: Float[np.ndarray, "3"]
) -> Image.Image:
    """Rotates the hue and scales saturation and brightness, by tables over 8-bit HSV.

    Args:
        image: RGB.
        augmentation: the largest changes.
        draws: hue, saturation, brightness: each between -1 and 1 times the largest change.

    Returns:
        The image in RGB; gray stays gray.
    """
    if not (augmentation.hue or augmentation.saturation or augmentation.brightness):
        return image
    change = draws * (augmentation.hue, augmentation.saturation, augmentation.brightness)
    levels = np.arange(256)
    tables = [
        (levels + round(HUES * change[0])) % HUES,
        (levels * (1 + change[1])).clip(0, 255).astype(int),
        (levels * (1 + change[2])).clip(0, 255).astype(int),
    ]
    return image.convert("HSV").point(np.concatenate(tables).tolist()).convert("RGB")
