"""Detection data: where pictures come from, and the batches for training and evaluation."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import grain
import jax
import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image

from train.data.augment import Augmentation, augmented
from train.data.decoding import GRAY
from train.data.digits import DigitScenes
from train.data.geometry import draw, letterboxed
from train.data.pictures import Annotated, Cache, Pictures, annotated, report, warn_once
from train.data.voc import Scan, scan_folder
from train.data.voc_tfds import scan_tfds
from train.errors import one_line, require

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """Where pictures and boxes come from, and how they are fitted to the network."""

    train: tuple[str, ...] = ()
    """Training pictures, joined: FOLDER or FOLDER:SPLIT in Pascal VOC layout (SPLIT: a list
    ImageSets/Main/SPLIT.txt or a folder; A+B joins two), or tfds:NAME:SPLIT such as
    tfds:voc/2007:train+validation. None: scenes of handwritten digits, made on the fly."""

    held_out: tuple[str, ...] = ()
    """Pictures for evaluation, in the same form."""

    classes: tuple[str, ...] = ()
    """Class names; other objects are dropped. None: those of the training pictures, sorted."""

    size: int = 320
    """Side of the network's square input in pixels, a multiple of 32."""

    max_objects: int = 100
    """Most objects of a training picture after augmentation; beyond it the smallest are dropped."""

    scenes: int = 2000
    """Number of digit scenes in the training set."""

    held_out_scenes: int = 200
    """Number of digit scenes for evaluation, with scans that no training scene shows."""

    cache: int = 1024
    """MiB of decoded pictures that each process that makes batches keeps in memory."""

    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("max_objects", "scenes", "held_out_scenes"):
            require(
                getattr(self, name) >= 1, f"data.{name}={getattr(self, name)} must be at least 1"
            )
        require(
            self.size >= 32 and self.size % 32 == 0,
            f"data.size={self.size} must be a positive multiple of 32, the largest stride",
        )
        require(self.cache >= 0, f"data.cache={self.cache} must be at least 0 MiB")
        require(
            bool(self.train) == bool(self.held_out),
            "data.train and data.held_out belong together: give both, or neither for digit scenes",
        )
        require(
            len(set(self.classes)) == len(self.classes),
            f"data.classes={self.classes} repeat a name",
        )
        for name in self.classes:
            require(
                name == one_line(name) != "",
                f"data.classes has {name!r}: a name is not empty, and has no line ends and no "
                "repeated or outer blanks, since those of annotations are removed",
            )


def read_pictures(data: DetectionData, *, seed: int) -> tuple[Pictures, Pictures]:
    """Opens the training and the held-out pictures, and warns about problems.

    Every image and annotation is read once, on all cores, so that the usable ones are known before
    the first step: about 1000 images per second and core.

    Args:
        data: where the pictures are.
        seed: of the digit scenes.

    Returns:
        Training and held-out pictures, with the same class names.

    Raises:
        BadInput: a place that is missing, has no such split, or has no usable pictures.
    """
    if not data.train:
        training = DigitScenes(data.scenes, data.size, seed=seed)
        held_out = DigitScenes(data.held_out_scenes, data.size, held_out=True, seed=seed)
        require(
            data.classes in ((), training.names),
            f"data.classes={data.classes} do not fit digit scenes, whose classes are 0 to 9",
        )
        return training, held_out
    scans = [[_scan(place) for place in places] for places in (data.train, data.held_out)]
    found = sorted({name for scan in scans[0] for e in scan.entries for name, _ in e.objects})
    names = data.classes or tuple(found)
    require(bool(names), f"data.train={' '.join(data.train)} has pictures, but no objects in them")
    training, held_out = (
        _join(names, part, places)
        for part, places in zip(scans, (data.train, data.held_out), strict=True)
    )
    known = {entry.crc32 for scan in scans[0] for entry in scan.entries}
    both = [e.key for scan in scans[1] for e in scan.entries if e.crc32 in known]
    if jax.process_index() == 0:
        report([("picture that is also trained on", key) for key in both], " ".join(data.held_out))
    require(
        len(training.labels) > 0,
        f"data.classes={data.classes}: no object of data.train has such a name; it has "
        f"{', '.join(found)}",
    )
    return training, held_out


def training_batches(
    pictures: Pictures, data: DetectionData, *, batch_size: int, steps: int, seed: int
) -> grain.MapDataset:
    """An endless dataset of batches of augmented pictures; element `k` is the batch of step `k`.

    Every pass over the pictures has its own order. A picture's augmentation, and the pictures that
    join it in a mosaic, depend only on the seed and on the picture's position in the run. The
    mosaic is off for the last `augmentation.plain_epochs` passes before step `steps`. With several
    processes, each makes its own part of every batch.

    Args:
        pictures: the training part.
        data: size of the input, most objects, augmentation.
        batch_size: pictures per batch, over all processes.
        steps: length of the run, in batches.
        seed: of order and augmentation.

    Returns:
        A dataset of batches of B = batch_size / processes pictures: `image` uint8 `[B, S, S, 3]`
        (RGB; divide by 255 on the device: a quarter of the bytes to transfer), `boxes` float32
        `[B, M, 4]` (centre x, y, width, height, divided by S), `labels` int32 `[B, M]`, and
        `valid` bool `[B, M]`, False for padding; `dropped` int32 `[B]`, objects beyond M.
    """
    plain = data.augmentation.plain_epochs * len(pictures)  # pictures at the end
    mosaics = max(steps * batch_size - plain, 0)
    make = functools.partial(
        _training_element, Cache(pictures, data.cache), data, mosaics=mosaics, seed=seed
    )
    order = grain.MapDataset.range(len(pictures)).seed(seed).shuffle().repeat()
    mine = order.map_with_index(make)[jax.process_index() :: jax.process_count()]
    return mine.batch(batch_size // jax.process_count(), drop_remainder=True)


def evaluation_batches(pictures: Pictures, *, size: int, batch_size: int) -> grain.MapDataset:
    """Batches of letterboxed pictures, each picture once; the last batch is padded.

    Args:
        pictures: the held-out part.
        size: side of the square, in pixels.
        batch_size: pictures per batch, over all processes; each process has its own part.

    Returns:
        A dataset of batches like those of training, with M the most objects of a picture, and with
        `index` int32 `[B]`, the picture, -1 for padding; `size` int32 `[B, 2]`, its width and
        height in pixels; `scale`, `offset` float32 `[B, 2]`: point (x, y) of the picture is at
        `scale * point + offset` in the square.
    """
    make = functools.partial(_evaluation_element, pictures, size)
    filled = -(-len(pictures) // batch_size) * batch_size
    order = grain.MapDataset.range(filled)[jax.process_index() :: jax.process_count()]
    return order.map(make).batch(batch_size // jax.process_count())


def _training_element(
    pictures: Pictures, data: DetectionData, position: int, index: int, *, mosaics: int, seed: int
) -> Batch:
    """The augmented picture at a position of the run; a mosaic only before `mosaics`."""
    image, boxes, labels = augmented(
        pictures,
        int(index),
        size=data.size,
        augmentation=data.augmentation,
        mosaic=position < mosaics,
        rng=np.random.default_rng([seed, position]),
    )
    return {"image": image, **_targets(boxes, labels, data.size, data.max_objects)}


def _evaluation_element(pictures: Pictures, size: int, index: int) -> Batch:
    """A picture in its letterbox; padding after the last picture."""
    canvas = Image.new("RGB", (size, size), GRAY)
    most = max(pictures.most_objects, 1)  # the loss and the matching need a row
    if index >= len(pictures):
        nothing = _targets(np.zeros((0, 4)), np.zeros(0, np.int32), size, most)
        geometry = {
            "index": np.asarray(-1, np.int32),
            "size": np.asarray([size, size], np.int32),
            "scale": np.ones(2, np.float32),
            "offset": np.zeros(2, np.float32),
        }
        return {"image": np.asarray(canvas), **nothing, **geometry}
    picture = pictures.load(int(index), size)
    placement = letterboxed(picture.size, size)
    draw(canvas, picture, placement)
    return {
        "image": np.asarray(canvas),
        **_targets(placement.boxes(picture.boxes), picture.labels, size, most),
        "index": np.asarray(index, np.int32),
        "size": np.asarray(picture.size, np.int32),
        "scale": np.asarray(placement.scale, np.float32),
        "offset": np.asarray(placement.offset, np.float32),
    }


def _targets(
    boxes: np.ndarray, labels: Int32[np.ndarray, "N"], size: int, most: int
) -> dict[str, np.ndarray]:
    """Boxes in pixels as padded targets of the loss; the smallest are dropped if too many."""
    dropped = max(len(boxes) - most, 0)
    if dropped:
        warn_once(
            f"a training picture has more than data.max_objects={most} objects; the smallest are "
            "left out, in this and in every such picture (batches count them)"
        )
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.sort(np.argsort(-area, kind="stable")[:most])
        boxes, labels = boxes[kept], labels[kept]
    count = len(boxes)
    padded: Float32[np.ndarray, "M 4"] = np.zeros((most, 4), np.float32)
    padded[:count, :2] = (boxes[:, :2] + boxes[:, 2:]) / (2 * size)
    padded[:count, 2:] = (boxes[:, 2:] - boxes[:, :2]) / size
    classes = np.zeros(most, np.int32)
    classes[:count] = labels
    return {
        "boxes": padded,
        "labels": classes,
        "valid": np.arange(most) < count,
        "dropped": np.asarray(dropped, np.int32),
    }


def _scan(place: str) -> Scan:
    """Reads a place in the form of `DetectionData.train`."""
    if place.startswith("tfds:"):
        name, _, split = place.removeprefix("tfds:").rpartition(":")
        require(
            bool(name), f"{place} names no split; write tfds:NAME:SPLIT, such as tfds:voc/2007:test"
        )
        return scan_tfds(name, split)
    if Path(place).is_dir():
        return scan_folder(Path(place))
    folder, _, split = place.rpartition(":")
    require(
        bool(folder),
        f"{place} is not a folder, and it names no split; write FOLDER or FOLDER:SPLIT",
    )
    return scan_folder(Path(folder), split)


def _join(names: tuple[str, ...], scans: list[Scan], places: tuple[str, ...]) -> Annotated:
    """Joins the places of one part, and reports what was wrong with them."""
    pictures, unknown = annotated(names, [(scan.files, scan.entries) for scan in scans])
    if jax.process_index() == 0:
        trouble = [item for scan in scans for item in scan.trouble] + unknown
        left_out = [item for scan in scans for item in scan.left_out]
        report(trouble, " + ".join(places), left_out=left_out)
    return pictures
