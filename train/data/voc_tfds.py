"""Pascal VOC, and data sets with the same features, as prepared by TensorFlow Datasets."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.data.decoding import check_image
from train.data.pictures import Entry, Trouble
from train.data.prepared import open_dataset, reading
from train.data.voc import Scan
from train.data.voc_annotation import TURNED, clip_box
from train.errors import BadInput, one_line, require


class Records:
    """The encoded images of selected records of a TFDS data source."""

    def __init__(self, source: Sequence[Any], indices: Sequence[int]) -> None:
        self._source, self._indices = source, tuple(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> bytes:
        return self._source[self._indices[index]]["image"]


def scan_tfds(name: str, split: str) -> Scan:
    """Reads the records of a detection data set that TFDS prepared as array_record.

    Args:
        name: of the data set, such as "voc/2007".
        split: as TFDS writes it, such as "train+validation" or "test".

    Returns:
        Usable pictures in the order of the records, and what was skipped or changed. Boxes are
        shifted by one pixel as in VOC folders, since records have the numbers of the annotations.

    Raises:
        BadInput: a data set that is not prepared (the message has the command that does it), an
            unknown split, or other features.
    """
    source, builder = _open(name, split)
    labels = builder.info.features["objects"]["label"].names
    entries: list[Entry] = []
    indices: list[int] = []
    trouble: list[Trouble] = []
    with reading(builder):
        count = len(source)
    for index in range(count):
        with reading(builder):
            record = source[index]
        key = f"{name}:{split} record {index}{_file_name(record)}"
        try:
            frame = check_image(record["image"])
        except ValueError as error:
            trouble.append(("broken image, skipped", f"{key}: {error}"))
            continue
        objects, problems = _objects(record["objects"], labels, frame.size)
        problems += [TURNED] if frame.orientation != 1 else []
        trouble += [(problem, key) for problem in problems]
        entries.append(Entry(key, frame.size, zlib.crc32(record["image"]), objects))
        indices.append(index)
    require(bool(entries), f"tfds:{name}:{split} holds no usable picture")
    return Scan(Records(source, indices), entries, trouble)


def _open(name: str, split: str) -> tuple[Any, Any]:
    """The data source with images left encoded, and its TFDS builder."""
    builder = open_dataset(name, None, option="$TFDS_DATA_DIR")
    import tensorflow_datasets as tfds  # a slow import, done by now

    features: dict[str, Any] = dict(builder.info.features.items())
    objects = features.get("objects")
    require(
        "image" in features and {"bbox", "label"} <= set(getattr(objects, "feature", ())),
        f"tfds:{name} is not a detection data set: it has the features {', '.join(features)}, and "
        "needs image, objects/bbox and objects/label",
    )
    try:
        decoders = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split=split, decoders=decoders), builder
    except (ValueError, AssertionError) as error:
        known = ", ".join(builder.info.splits)
        raise BadInput(
            f"tfds:{name} has no split {split!r}; it has {known} ({one_line(error)})"
        ) from error


def _objects(
    objects: dict[str, Any], labels: Sequence[str], size: tuple[int, int]
) -> tuple[list[tuple[str, tuple[float, float, float, float]]], list[str]]:
    """Names and boxes of objects that are not difficult; and what was dropped or clipped."""
    found, trouble = [], []
    width, height = size
    # real data sources give a list of arrays, empty without objects; mocked ones give an array
    boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
    difficult = np.asarray(objects.get("is_difficult", [False] * len(boxes)), bool)
    for (top, left, bottom, right), label, hard in zip(
        boxes.tolist(), objects["label"], difficult, strict=True
    ):
        if hard:
            continue
        box = left * width - 1, top * height - 1, right * width - 1, bottom * height - 1
        clipped, problem = clip_box(box, size)
        if problem:
            trouble.append(problem)
        if clipped is None:
            continue
        if (labels[int(label)], clipped) in found:
            trouble.append("repeated object, dropped")
        else:
            found.append((labels[int(label)], clipped))
    return found, trouble


def _file_name(record: dict[str, Any]) -> str:
    """The record's file name in brackets, if it has one."""
    name = record.get("image/filename", b"")
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return f" ({text})" if text else ""
