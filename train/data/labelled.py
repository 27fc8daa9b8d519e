"""Small labelled images in memory: handwritten digits, or CIFAR-10 from a folder."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import grain
import jax
import numpy as np
from jaxtyping import Int32, UInt8

from train.data.decoding import IMAGE_SUFFIXES, decode
from train.data.folders import ARCHIVE_ERRORS, inside, list_archive, list_files
from train.data.pictures import report
from train.errors import BadInput, one_line, require

SPLITS = ("train", "test")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Where the images come from, and how training augments them."""

    path: Path | None = None
    """Folder with train.zip and test.zip, or .tar, .tar.gz, or folders train and test (in each, one
    folder of images per class); or with a TFDS dataset that has an image and a label, prepared as
    array_record. None: scikit-learn's 1,797 scans of handwritten digits, the last fifth held out.
    """

    shift: int = 0
    """Largest random shift in training, in pixels; the border repeats."""

    flip: bool = False
    """Mirror half of the training images."""

    label_noise: float = 0.0
    """Share of the training images that get another class, drawn from the seed, 0 .. 1. The
    held-out images keep theirs."""

    def __post_init__(self) -> None:
        require(
            0 <= self.label_noise <= 1,
            f"data.label_noise={self.label_noise} must lie between 0 and 1",
        )
        require(self.shift >= 0, f"data.shift={self.shift} must be at least 0")


class LabelledImages(NamedTuple):
    """Images of one size, and the class of each."""

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, "N"]
    names: tuple[str, ...]  # of the classes

    def first(self, count: int) -> Self:
        """The first images."""
        return self._replace(images=self.images[:count], labels=self.labels[:count])

    def fingerprint(self) -> dict[str, int | str]:
        """Count and checksum, to detect whether the data changed."""
        crc32 = zlib.crc32(self.labels.tobytes(), zlib.crc32(self.images.tobytes()))
        return {"images": len(self.labels), "crc32": crc32}


def read_images(data: ImageData) -> tuple[LabelledImages, LabelledImages]:
    """Reads training and held-out images.

    Args:
        data: where the images are.

    Returns:
        Training and held-out images, of the same size and classes.

    Raises:
        BadInput: missing or unreadable images; the message names the file.
    """
    if data.path is None:
        return digits()
    prepared = (data.path / "dataset_info.json").is_file()
    require(
        prepared or all(_place(data.path, split) for split in SPLITS),
        f"data.path={data.path} is not a folder with train and test (each a .zip or .tar archive, "
        "or a folder), nor with a prepared TFDS dataset (dataset_info.json)",
    )
    read = _read_prepared if prepared else _read_classes
    training, held_out = (read(data.path, split) for split in SPLITS)
    for what, there, here in (
        ("classes", training.names, held_out.names),
        ("sizes", training.images.shape[1:], held_out.images.shape[1:]),
    ):
        require(there == here, f"{data.path}: {what} differ, {there} in train, {here} in test")
    return training, held_out


def digits() -> tuple[LabelledImages, LabelledImages]:
    """Scikit-learn's handwritten digits, 8x8 gray; the last fifth is held out."""
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, target = load_digits(return_X_y=True)
    images = (np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(target, np.int32)
    cut = len(labels) * 4 // 5
    names = tuple("0123456789")
    return (
        LabelledImages(images[:cut], labels[:cut], names),
        LabelledImages(images[cut:], labels[cut:], names),
    )


def with_label_noise(training: LabelledImages, share: float, *, seed: int) -> LabelledImages:
    """The same images, a share of them with another class, each other class equally likely.

    Args:
        training: the images.
        share: of the images, 0 .. 1; rounded to a number of images.
        seed: chooses the images and their classes.
    """
    rng = np.random.default_rng(seed)
    count, classes = len(training.labels), len(training.names)
    wrong = rng.permutation(count)[: round(share * count)]
    shifts = np.zeros(count, np.int32)
    shifts[wrong] = rng.integers(1, classes, size=len(wrong))
    return training._replace(labels=(training.labels + shifts) % classes)


def training_batches(
    training: LabelledImages, data: ImageData, *, batch_size: int, seed: int
) -> grain.MapDataset:
    """An endless dataset of batches of shuffled, augmented images; element `k` is for step `k`.

    Every pass has its own order and augmentation, drawn from the seed. With several processes, each
    makes its own part of every batch.

    Args:
        training: the images.
        data: how they are augmented.
        batch_size: images per batch, over all processes.
        seed: of order and augmentation.

    Returns:
        A dataset of uint8 `[batch_size / processes, H, W, C]` and int32 labels.
    """

    def example(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
        return _augmented(training.images[index], data, rng), training.labels[index]

    order = grain.MapDataset.range(len(training.labels)).seed(seed).shuffle().repeat()
    mine = order.random_map(example)[jax.process_index() :: jax.process_count()]
    return mine.batch(batch_size // jax.process_count(), drop_remainder=True)


def _augmented(
    image: UInt8[np.ndarray, "H W C"], data: ImageData, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W C"]:
    """An image, randomly shifted and mirrored."""
    if data.shift:
        height, width, _ = image.shape
        down, right = rng.integers(0, 2 * data.shift + 1, size=2)
        margin = (data.shift, data.shift)
        padded = np.pad(image, (margin, margin, (0, 0)), mode="edge")
        image = padded[down : down + height, right : right + width]
    return image[:, ::-1] if data.flip and rng.random() < 0.5 else image


def _place(folder: Path, split: str) -> Path | None:
    """The archive of a split, otherwise its folder; None if there is neither."""
    archives = [folder / f"{split}{suffix}" for suffix in ARCHIVES]
    places = [*(p for p in archives if p.is_file()), folder / split]
    return places[0] if places[0].exists() else None


def _read_classes(folder: Path, split: str) -> LabelledImages:
    """Decodes an archive or folder that has a folder of images for each class."""
    place = _place(folder, split)
    assert place is not None
    left_out: list[tuple[str, str]] = []
    pixels: dict[PurePosixPath, np.ndarray] = {}
    try:
        for path, data in _encoded(place, left_out):
            try:
                pixels[path] = np.asarray(decode(data))
            except ValueError as error:
                left_out.append(("broken", f"{path}: {error}"))
    except (*ARCHIVE_ERRORS, OSError) as error:
        raise BadInput(f"cannot read {place}: {one_line(error)}") from error
    classes = class_folders(pixels)
    left_out += [("in no class folder", str(path)) for path in sorted(pixels.keys() - classes)]
    if jax.process_index() == 0:
        report([], str(place), left_out=left_out)
    names = tuple(sorted(set(classes.values())))
    paths = sorted(classes)
    labels = [names.index(classes[path]) for path in paths]
    return _joined(place, {str(path): pixels[path] for path in paths}, labels, names)


def _encoded(place: Path, left_out: list[tuple[str, str]]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The images in a folder or archive, each with its path in it; adds to what is left out."""
    if place.is_dir():
        listing = list_files(place, IMAGE_SUFFIXES)
        left_out += listing.left_out
        for path in listing.files:
            yield PurePosixPath(path.relative_to(place).as_posix()), path.read_bytes()
    elif place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            found = list_archive(archive, IMAGE_SUFFIXES)
            left_out += found.left_out
            for name in found.files:
                yield inside(name), archive.read(name)
    else:
        with tarfile.open(place) as archive:
            found = list_archive(archive, IMAGE_SUFFIXES)
            left_out += found.left_out
            wanted = set(found.files)
            for member in archive.getmembers():  # in their order: no seeking back if compressed
                file = archive.extractfile(member) if member.name in wanted else None
                if file is not None:
                    yield inside(member.name), file.read()


def class_folders(paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The class of each image: the first folder of its path that not all images share.

    Images above all class folders have none. If all images are in one folder, that is the class.

    Example:
        >>> paths = map(PurePosixPath, ("all/cat/1.png", "all/dog/x/2.png", "all/logo.png"))
        >>> list(class_folders(paths).values())
        ['cat', 'dog']
    """
    found = {path: path.parts[:-1] for path in paths}
    while found:
        first, last = min(found.values()), max(found.values())
        shared = 0
        while first[shared : shared + 1] == last[shared : shared + 1] != ():
            shared += 1
        deeper = {path: folders for path, folders in found.items() if len(folders) > shared}
        if not deeper:
            return {path: folders[-1] for path, folders in found.items() if folders}
        if len(deeper) == len(found):
            return {path: folders[shared] for path, folders in found.items()}
        found = deeper
    return {}


def _read_prepared(folder: Path, split: str) -> LabelledImages:
    """Decodes a split of a prepared TFDS dataset."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
        features = builder.info.features
        names = tuple(features["label"].names)
        channels = 1 if features["image"].shape[-1] == 1 else 3
        decoders = {"image": tfds.decode.SkipDecoding()}
        examples = list(builder.as_data_source(split=split, decoders=decoders))
        images = {
            f"record {i}": np.asarray(decode(example["image"]))[..., :channels]
            for i, example in enumerate(examples)
        }
        labels = [int(example["label"]) for example in examples]
    except Exception as error:  # TFDS raises anything
        raise BadInput(f"cannot read the {split} images of {folder}: {one_line(error)}") from error
    return _joined(folder, images, labels, names)


def _joined(
    place: Path, images: dict[str, np.ndarray], labels: list[int], names: tuple[str, ...]
) -> LabelledImages:
    """Images of one size as one array."""
    require(bool(images), f"{place} holds no image in a class folder")
    first, expected = next((key, image.shape) for key, image in images.items())
    for key, image in images.items():
        require(
            image.shape == expected,
            f"{place} holds images of different sizes: {key} has {image.shape[1]} x "
            f"{image.shape[0]} pixels, {first} {expected[1]} x {expected[0]}",
        )
    return LabelledImages(np.stack(list(images.values())), np.asarray(labels, np.int32), names)
