"""A trained classifier applied to images: their classes, with probabilities."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from train.data.decoding import decode
from train.data.pictures import Trouble, report
from train.detection.predict import images_at
from train.errors import require

SHOWN = 3  # classes in the line of an image

Classify = Callable[[UInt8[np.ndarray, "H W C"]], Float[np.ndarray, "K"]]  # to probabilities


def predict_classes(
    classify: Classify,
    place: Path,
    output: Path,
    *,
    names: Sequence[str],
    shape: tuple[int, int, int],
) -> None:
    """Prints the classes of an image, or of all images of a folder.

    Args:
        classify: the classifier.
        place: an image, or a folder of images.
        output: folder for `classes.jsonl`, whose lines have the name of an `image` and the
            probability of each class. One line is printed per image, with the likeliest classes.
        names: of the classes, by label.
        shape: height, width and channels of the images that the classifier was trained on; images
            of another size are skipped.

    Raises:
        BadInput: no such file or folder, or no images that can be read and have that size.
    """
    images = images_at(place)
    height, width, channels = shape
    trouble: list[Trouble] = []
    lines: list[str] = []
    for path in images.files:
        try:
            pixels = np.asarray(decode(path.read_bytes()))
        except (OSError, ValueError) as error:
            trouble.append(("broken image, skipped", f"{path.name}: {error}"))
            continue
        if pixels.shape[:2] != (height, width):
            kind = f"image that does not have {width} x {height} pixels, skipped"
            trouble.append((kind, f"{path.name}: {pixels.shape[1]} x {pixels.shape[0]}"))
            continue
        found = classify(pixels[..., :channels])
        likely = [f"{names[k]} {found[k]:.1%}" for k in np.argsort(-found, kind="stable")[:SHOWN]]
        print(f"{path.name}: {', '.join(likely)}")
        classes = dict(zip(names, map(float, found), strict=True))
        lines.append(json.dumps({"image": path.name, "classes": classes}))
    report(trouble, str(place), left_out=images.left_out)
    require(bool(lines), f"{place} has no image of {width} x {height} pixels that can be read")
    output.mkdir(parents=True, exist_ok=True)
    (output / "classes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
