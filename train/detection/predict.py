"""A trained detector applied to images: detections drawn and as numbers."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from train.data.decoding import GRAY, IMAGE_SUFFIXES, decode
from train.data.folders import Listing, describe, list_files
from train.data.geometry import draw, letterboxed
from train.data.pictures import Picture, Trouble, report
from train.detection.drawing import draw_detections
from train.errors import require

# A network input [S, S, 3] to detections: corners in pixels of the input, score, class.
Find = Callable[[UInt8[np.ndarray, "S S 3"]], Float[np.ndarray, "K 6"]]


def predict(
    find: Find,
    place: Path,
    output: Path,
    *,
    names: Sequence[str],
    side: int,
    confidence: float,
) -> None:
    """Draws the detections in an image, or in all images of a folder.

    Args:
        find: the detector.
        place: an image, or a folder of images.
        output: folder for one PNG per image and `detections.jsonl`, whose lines have the name of an
            `image` and its `objects`, each with `class`, `score` and `box` (corners in pixels of
            the upright image). One line is printed per image.
        names: of the classes, by label.
        side: of the detector's square input, in pixels.
        confidence: detections with a lower score are left out.

    Raises:
        BadInput: no such file or folder, or no images that can be read.
    """
    images = images_at(place)
    trouble: list[Trouble] = []
    lines: list[str] = []
    output.mkdir(parents=True, exist_ok=True)
    for path in images.files:
        try:
            image = decode(path.read_bytes())
        except (OSError, ValueError) as error:
            trouble.append(("broken image, skipped", f"{path.name}: {error}"))
            continue
        rows = _detections(find, image, side)
        rows = rows[rows[:, 4] >= confidence]
        draw_detections(image, rows, names, confidence=confidence).save(output / f"{path.name}.png")
        objects = [
            {"class": names[int(kind)], "score": score, "box": box}
            for *box, score, kind in rows.tolist()
        ]
        lines.append(json.dumps({"image": path.name, "objects": objects}))
        counts = Counter(str(x["class"]) for x in objects)
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        print(f"{path.name}: {found}")
    report(trouble, str(place), left_out=images.left_out)
    require(bool(lines), f"{place} has no image that can be read")
    (output / "detections.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} images drawn in {output}")


def images_at(place: Path) -> Listing[Path]:
    """The image, or the images of the folder sorted by name.

    Raises:
        BadInput: there are none.
    """
    known = place.is_file() or place.is_dir()
    require(known, f"{place} is neither an image nor a folder of images")
    if place.is_file():
        return Listing([place], [])
    found = list_files(place, IMAGE_SUFFIXES, recursive=False)
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    left_out = f"; {describe(found.left_out)}" if found.left_out else ""
    require(bool(found.files), f"{place} has no image; known are {suffixes}{left_out}")
    return found


def _detections(find: Find, image: Image.Image, side: int) -> Float[np.ndarray, "K 6"]:
    """Detections in pixels of the image, clipped to it, by decreasing score."""
    no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    canvas = Image.new("RGB", (side, side), GRAY)
    placement = letterboxed(image.size, side)
    draw(canvas, Picture(image, image.size, no_boxes, no_labels), placement)
    rows = find(np.asarray(canvas)).astype(float)
    scale, offset = np.tile(placement.scale, 2), np.tile(placement.offset, 2)
    rows[:, :4] = ((rows[:, :4] - offset) / scale).clip(0, np.tile(image.size, 2))
    return rows
