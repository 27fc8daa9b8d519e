"""Where a picture is on a canvas: letterbox, mosaic and zoom as one scale and shift."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from train.data.pictures import Picture


class Placement(NamedTuple):
    """The map `scale * point + offset` from pixels of a picture to pixels of a canvas."""

    scale: tuple[float, float]  # x, y
    offset: tuple[float, float]  # x, y, in pixels of the canvas
    window: tuple[float, float, float, float]  # left, top, right, bottom; nothing is drawn outside

    def boxes(self, boxes: Float32[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
        """Boxes of the picture on the canvas, not clipped."""
        return boxes * np.tile(self.scale, 2) + np.tile(self.offset, 2)

    def then(self, gain: float, offset: tuple[float, float]) -> "Placement":
        """This placement followed by another scale and shift."""
        shift = np.tile(offset, 2)
        (sx, sy), (x, y) = self.scale, self.offset
        return Placement(
            (gain * sx, gain * sy),
            (gain * x + offset[0], gain * y + offset[1]),
            tuple((gain * np.asarray(self.window) + shift).tolist()),
        )


class Letterbox(NamedTuple):
    """A picture in the middle of a square: its size and the borders around it."""

    ratio: float  # new size over old, before rounding
    width: int
    height: int
    top: int
    bottom: int
    left: int
    right: int


def letterbox(height: int, width: int, size: int, *, upscale: bool = True) -> Letterbox:
    """Centres a picture in a square of side `size`: ratio `min(size / height, size / width)`.

    Sides are rounded, to at least 1 pixel; odd borders are one pixel wider below and on the right.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        size: side of the square, in pixels.
        upscale: also enlarge pictures that are smaller than the square.

    Returns:
        The size of the picture in the square and its borders, in pixels.

    Example:
        >>> letterbox(375, 500, 640)
        Letterbox(ratio=1.28, width=640, height=480, top=80, bottom=80, left=0, right=0)
    """
    ratio = min(size / height, size / width)
    if not upscale:
        ratio = min(ratio, 1.0)
    new_width, new_height = max(round(width * ratio), 1), max(round(height * ratio), 1)
    x, y = (size - new_width) / 2, (size - new_height) / 2
    borders = round(y - 0.1), round(y + 0.1), round(x - 0.1), round(x + 0.1)
    return Letterbox(ratio, new_width, new_height, *borders)


def letterboxed(size: tuple[int, int], side: int) -> Placement:
    """The placement of a picture of a size (width, height) in the middle of a square."""
    box = letterbox(size[1], size[0], side)
    scale = box.width / size[0], box.height / size[1]
    return Placement(scale, (float(box.left), float(box.top)), (0.0, 0.0, float(side), float(side)))


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height when the longer side becomes `side`, rounded up."""
    longer = max(size)
    width, height = (min(math.ceil(length * side / longer), side) for length in size)
    return width, height


def draw(canvas: Image.Image, picture: Picture, placement: Placement) -> None:
    """Draws a picture onto a canvas with one resampling; shrinking averages covered pixels.

    A canvas pixel shows the picture if its centre is on it, so an edge of the picture is at most
    half a pixel from its exact position.
    """
    start, stop = [], []  # in canvas pixels
    box_start, box_stop = [], []  # in image pixels
    for axis in range(2):
        scale, offset, length = placement.scale[axis], placement.offset[axis], picture.size[axis]
        low = max(placement.window[axis], offset, 0.0)
        high = min(placement.window[axis + 2], offset + scale * length, canvas.size[axis])
        first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)  # centres in [low, high)
        if last <= first:
            return
        start.append(first)
        stop.append(last)
        box_start.append(max((first - offset) / scale, 0.0) / picture.reduced)
        box_stop.append(min((last - offset) / scale, length) / picture.reduced)
    shape = stop[0] - start[0], stop[1] - start[1]
    part = picture.image.resize(
        shape, Image.Resampling.BILINEAR, box=(*box_start, *box_stop), reducing_gap=None
    )
    canvas.paste(part, (start[0], start[1]))
