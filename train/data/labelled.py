"""Small labelled images in memory: handwritten digits, or CIFAR-10 from a folder."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import grain
import jax
import numpy as np
from jaxtyping import Int32, UInt8

from train.errors import BadInput, require

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Where the images are from, and how training changes them."""

    path: Path | None = None
    """Folder with train.zip and test.zip (inside: one folder of JPEG or PNG images a class), or
    with a TFDS dataset that has an image and a label, prepared as array_record; None:
    scikit-learn's 1,797 scans of handwritten digits, the last fifth held out."""

    shift: int = 0
    """Largest random shift in training, in pixels; the border repeats."""

    flip: bool = False
    """Mirror half of the training images."""

    def __post_init__(self) -> None:
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
        """Count and checksum, to tell whether the data changed."""
        crc32 = zlib.crc32(self.labels.tobytes(), zlib.crc32(self.images.tobytes()))
        return {"images": len(self.labels), "crc32": crc32}


def read_images(data: ImageData) -> tuple[LabelledImages, LabelledImages]:
    """Reads training and held-out images.

    Args:
        data: where they are.

    Returns:
        Training and held-out images, of the same size and classes.

    Raises:
        BadInput: missing or unreadable; naming the file.
    """
    if data.path is None:
        return digits()
    prepared = (data.path / "dataset_info.json").is_file()
    require(
        prepared or all((data.path / f"{split}.zip").is_file() for split in SPLITS),
        f"data.path={data.path} is no folder with train.zip and test.zip, nor with a prepared TFDS "
        "dataset (dataset_info.json)",
    )
    read = _read_prepared if prepared else _read_zip
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


def training_batches(
    training: LabelledImages, data: ImageData, *, batch_size: int, seed: int
) -> grain.MapDataset:
    """Batches of shuffled, changed images without end: element `k` is the batch of step `k`.

    Every pass has its own order and changes, drawn from the seed. With several processes, each
    makes its own part of every batch.

    Args:
        training: the images.
        data: how they are changed.
        batch_size: images a batch, over all processes.
        seed: of order and changes.

    Returns:
        A dataset of uint8 `[batch_size / processes, H, W, C]` and int32 labels.
    """

    def example(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
        return _changed(training.images[index], data, rng), training.labels[index]

    order = grain.MapDataset.range(len(training.labels)).seed(seed).shuffle().repeat()
    mine = order.random_map(example)[jax.process_index() :: jax.process_count()]
    return mine.batch(batch_size // jax.process_count(), drop_remainder=True)


def _changed(
    image: UInt8[np.ndarray, "H W C"], data: ImageData, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W C"]:
    """An image, shifted and mirrored at random."""
    if data.shift:
        height, width, _ = image.shape
        down, right = rng.integers(0, 2 * data.shift + 1, size=2)
        margin = (data.shift, data.shift)
        padded = np.pad(image, (margin, margin, (0, 0)), mode="edge")
        image = padded[down : down + height, right : right + width]
    return image[:, ::-1] if data.flip and rng.random() < 0.5 else image


def _read_zip(folder: Path, split: str) -> LabelledImages:
    """Decodes an archive; the classes are its folders, in alphabetical order."""
    from PIL import Image

    path = folder / f"{split}.zip"
    images, classes = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(name for name in archive.namelist() if not name.endswith("/"))
            for name in files:
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    images.append(np.asarray(image.convert("RGB")))
                classes.append(Path(name).parent.name)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    names = tuple(sorted(set(classes)))
    numbers = {name: number for number, name in enumerate(names)}
    return _joined(path, images, [numbers[name] for name in classes], names)


def _read_prepared(folder: Path, split: str) -> LabelledImages:
    """Decodes a split of a prepared TFDS dataset."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
        names = tuple(builder.info.features["label"].names)
        examples = list(builder.as_data_source(split=split))
        images = [np.asarray(example["image"]) for example in examples]
        labels = [int(example["label"]) for example in examples]
    except Exception as error:  # TFDS raises anything
        raise BadInput(f"cannot read the {split} images of {folder}: {error}") from error
    return _joined(folder, images, labels, names)


def _joined(
    path: Path, images: list[np.ndarray], labels: list[int], names: tuple[str, ...]
) -> LabelledImages:
    """Images of one size as one array."""
    sizes = sorted({image.shape for image in images})
    require(bool(images), f"{path} holds no image")
    require(len(sizes) == 1, f"{path} holds images of different sizes, such as {sizes[:3]}")
    return LabelledImages(np.stack(images), np.asarray(labels, np.int32), names)
