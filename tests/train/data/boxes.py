"""Small VOC folders and pictures of rectangles, for the tests of detection data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.pictures import Picture

Object = tuple[str, tuple[float, float, float, float]]  # class, and box as VOC counts


def annotation(objects: Sequence[Object], size: tuple[int, int] = (60, 40), extra: str = "") -> str:
    """A VOC annotation; boxes as written there, from 1."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    bodies = [
        f"<object><name>{name}</name>{extra}<bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    ]
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{''.join(bodies)}</annotation>"
    )


def rectangle(
    size: tuple[int, int], box: tuple[float, float, float, float], colour: tuple[int, int, int]
) -> Image.Image:
    """A dark picture with a rectangle."""
    image = np.full((size[1], size[0], 3), 20, np.uint8)
    left, top, right, bottom = (int(value) for value in box)
    image[top:bottom, left:right] = colour
    return Image.fromarray(image)


def write_pair(folder: Path, stem: str, text: str | bytes, *, suffix: str = ".jpg") -> None:
    """An annotation, and an image of 60 x 40 pixels, in VOC layout."""
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    (folder / "Annotations" / f"{stem}.xml").write_bytes(data)
    noise = np.random.default_rng(sum(stem.encode())).integers(0, 256, (10, 15, 3), np.uint8)
    image = Image.fromarray(noise).resize((60, 40))
    image.save(folder / "JPEGImages" / f"{stem}{suffix}")


class Drawn:
    """Pictures made for a test, in memory."""

    def __init__(self, pictures: Sequence[Picture], names: tuple[str, ...] = ("a", "b")) -> None:
        self.pictures, self.names = pictures, names

    @property
    def most_objects(self) -> int:
        return max(len(picture.labels) for picture in self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def load(self, index: int, needed: int) -> Picture:
        del needed
        return self.pictures[index]

    def fingerprint(self) -> dict[str, int | str]:
        return {"images": len(self)}


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of where a mask is true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
