"""Pascal VOC: folders of JPEGImages, Annotations and ImageSets, flat folders, and TFDS."""

import functools
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from train.data.pictures import Encoded, Entry, Files, Trouble, check_image
from train.errors import did_you_mean, require

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".JPG", ".JPEG", ".PNG")
SIDES = ("xmin", "ymin", "xmax", "ymax")

Box = tuple[float, float, float, float]


class Scan(NamedTuple):
    """What a place holds: encoded pictures, one entry each, and what was wrong."""

    files: Encoded
    entries: list[Entry]
    trouble: list[Trouble]


def scan_folder(folder: Path, split: str | None = None) -> Scan:
    """Reads a folder in VOC layout: every annotation, and every image once to its end.

    Images lie in `JPEGImages` and annotations in `Annotations`, or both in the folder itself. A
    split is a list `ImageSets/Main/SPLIT.txt` or a folder `SPLIT`; `A+B` joins two, None takes
    every annotation.

    Args:
        folder: the folder.
        split: which part of it.

    Returns:
        Usable pictures in the order of the list, or sorted; and what was skipped or changed.

    Raises:
        BadInput: no such folder, no such split, or no usable picture.
    """
    require(folder.is_dir(), f"{folder} is no folder; it should hold JPEGImages and Annotations")
    pairs = [pair for part in (split or "").split("+") for pair in _pairs(folder, part)]
    read = functools.partial(_read_pair, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and reading release the lock
        results = list(pool.map(read, dict.fromkeys(pairs)))
    usable = [(image, entry) for image, entry, _ in results if entry is not None]
    trouble = [item for _, _, found in results for item in found]
    where = f"{folder}" + (f", split {split}" if split else "")
    first = f"; the first of {len(trouble)} reasons: {': '.join(trouble[0])}" if trouble else ""
    require(bool(usable), f"{where} holds no usable picture with an annotation{first}")
    return Scan(Files(image for image, _ in usable), [entry for _, entry in usable], trouble)


def parse_annotation(data: bytes, size: tuple[int, int]) -> tuple[list[tuple[str, Box]], list[str]]:
    """Reads the objects of a VOC annotation.

    VOC counts pixels from 1: a box is `(xmin, ymin, xmax, ymax) - 1` in pixels that count from 0,
    its centre `(min + max) / 2 - 1`, its size `max - min`. Objects marked difficult are left out.

    Args:
        data: the XML file.
        size: width and height of the image, to which boxes are clipped.

    Returns:
        Class name and box (left, top, right, bottom) of each object; what was dropped or clipped.

    Raises:
        ValueError: no XML, or one with a DOCTYPE.
    """
    root = _parse(data)
    found, trouble = [], []
    stated = tuple((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    if all(text.isdecimal() and int(text) for text in stated) and stated != tuple(map(str, size)):
        trouble.append(f"annotation of a {' x '.join(stated)} image for one of another size, used")
    for node in root.findall("object"):
        if (node.findtext("difficult") or "").strip() == "1":
            continue
        name = (node.findtext("name") or "").strip()
        box, problem = _box(node, size)
        if problem:
            trouble.append(problem)
        if box is None:
            continue
        if not name:
            trouble.append("object without a class name, dropped")
        elif (name, box) in found:
            trouble.append("repeated object, dropped")
        else:
            found.append((name, box))
    if root.find("object") is None:
        trouble.append("annotation without objects, picture used as background")
    return found, trouble


def clip_box(box: Box, size: tuple[int, int]) -> tuple[Box | None, str | None]:
    """Clips a box to an image. One pixel outside is no trouble: some files count from 0.

    Returns:
        The box, None if nothing is left of it; and what was wrong.
    """
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return None, "box that is no number, dropped"
    if right <= left or bottom <= top:
        return None, "box without area, dropped"
    width, height = size
    clipped = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, "box outside the image, dropped"
    beyond = max(-left, -top, right - width, bottom - height)
    return clipped, "box partly outside the image, clipped" if beyond > 1 else None


def _parse(data: bytes) -> Element:
    """The root of an XML document without a DOCTYPE: no entities, which could expand or fetch."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding unknown to Python
        raise ValueError(str(error)) from None


def _refuse_doctype(*_: object) -> None:
    """An annotation needs no document type."""
    raise ValueError("it has a DOCTYPE, which annotations need not and which can define entities")


def _box(node: Element, size: tuple[int, int]) -> tuple[Box | None, str | None]:
    """The box of an object, clipped; None and a reason if it has none."""
    try:
        left, top, right, bottom = (
            float(node.findtext(f"bndbox/{side}") or "nan") - 1 for side in SIDES
        )
    except ValueError:
        return None, "box that is no number, dropped"
    return clip_box((left, top, right, bottom), size)


def _pairs(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Annotation and image (without its suffix) of each picture in a split; "" is all."""
    lists = folder / "ImageSets" / "Main"
    listed = lists / f"{split}.txt"
    if split and listed.is_file():
        text = listed.read_text(encoding="utf-8", errors="replace")
        stems = [line.split()[0] for line in text.splitlines() if line.strip()]
        return [(folder / "Annotations" / f"{s}.xml", folder / "JPEGImages" / s) for s in stems]
    known = sorted({path.stem for path in lists.glob("*.txt")} | _split_folders(folder))
    require(
        not split or (folder / split).is_dir(),
        f"{folder} has no split {split!r}{did_you_mean(split, known)}: neither "
        f"ImageSets/Main/{split}.txt nor a folder {split}; it has {', '.join(known) or 'none'}",
    )
    folder = folder / split
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    images = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    stems = {path.stem for path in annotations.iterdir() if path.suffix == ".xml"}
    stems |= {path.stem for path in images.iterdir() if path.suffix in IMAGE_SUFFIXES}
    return [(annotations / f"{stem}.xml", images / stem) for stem in sorted(stems)]


def _split_folders(folder: Path) -> set[str]:
    """Folders that could be splits."""
    own = {"JPEGImages", "Annotations", "ImageSets", "SegmentationClass", "SegmentationObject"}
    return {path.name for path in folder.iterdir() if path.is_dir()} - own


def _read_pair(
    folder: Path, pair: tuple[Path, Path]
) -> tuple[Path, Entry | None, list[tuple[str, str]]]:
    """Reads and checks one picture; without an entry, what is wrong with it."""
    annotation, stem = pair
    candidates = (stem.with_name(stem.name + suffix) for suffix in IMAGE_SUFFIXES)
    image = next((path for path in candidates if path.is_file()), None)
    key = str(annotation.relative_to(folder))
    if image is None:
        return stem, None, [("annotation without an image, skipped", key)]
    image_key = str(image.relative_to(folder))
    if not annotation.is_file():
        return stem, None, [("image without an annotation, skipped", image_key)]
    try:
        encoded = image.read_bytes()
        size = check_image(encoded)
    except (OSError, ValueError) as error:
        return stem, None, [("broken image, skipped", f"{image_key}: {error}")]
    try:
        objects, problems = parse_annotation(annotation.read_bytes(), size)
    except (OSError, ValueError) as error:
        return stem, None, [("broken annotation, skipped", f"{key}: {error}")]
    entry = Entry(image_key, size, zlib.crc32(encoded), objects)
    return image, entry, [(problem, key) for problem in problems]
