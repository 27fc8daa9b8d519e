"""Detections drawn onto their picture, each with a frame, a name and a score."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from train.fonts import font_file, label_of

LEAST_SIDE = 640  # pixels; smaller pictures are enlarged, so that labels can be read
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

Colour = tuple[int, int, int]


def draw_detections(
    picture: Image.Image,
    detections: Float[np.ndarray, "K 6"],
    names: Sequence[str],
    *,
    confidence: float = 0.25,
    objects: Float[np.ndarray, "M 4"] | None = None,
) -> Image.Image:
    """Draws detections in colour, and known objects as thin white frames.

    Args:
        picture: of any size; not changed.
        detections: corners in pixels of the picture, score, class.
        names: of the classes, by label; `class 3` is drawn for one that the font cannot show.
        confidence: detections with a lower score are left out; the most confident is drawn last.
        objects: corners of the objects, if known.

    Returns:
        A new picture in RGB, enlarged by an integer factor to a longer side of at least 640 pixels.
    """
    scale = -(-LEAST_SIDE // max(picture.size))
    size = picture.width * scale, picture.height * scale
    canvas = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    line = max(round(max(size) / 320), 2)
    font = ImageFont.truetype(font_file(), 8 * line)
    for box in np.asarray([] if objects is None else objects, float).reshape(-1, 4) * scale:
        pen.rectangle(_ordered(box), outline=WHITE, width=1)
    shown = detections[detections[:, 4] >= confidence]
    for *box, score, kind in shown[np.argsort(shown[:, 4], kind="stable")].tolist():
        colour = class_colour(int(kind))
        corners = _ordered(np.asarray(box) * scale)
        pen.rectangle(corners, outline=colour, width=line)
        name = label_of(names[int(kind)], int(kind))
        _label(pen, f"{name} {score:.2f}", corners, colour, font, size)
    return canvas


def class_colour(kind: int) -> Colour:
    """A bright colour that differs from those of the classes before: hues by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(kind * 0.618034 % 1, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ordered(box: np.ndarray) -> tuple[float, float, float, float]:
    """Corners of a box that may be inverted, in the order that the drawing library needs."""
    left, top, right, bottom = np.nan_to_num(np.asarray(box, float)).tolist()
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: tuple[float, float, float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Writes a label above the box, or inside the picture if there is not enough room."""
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    width, height = width + 4, height + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else min(max(box[1], 0), size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    pen.text((x + 2, y + 1), text, fill=BLACK if luminance > 128 else WHITE, font=font)
