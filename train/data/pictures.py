"""Pictures with labelled boxes: how they are held and cached, and how problems are reported."""

import bisect
import functools
import itertools
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Int32, Int64
from PIL import Image

from train.data.decoding import GRAY, decode
from train.data.folders import describe
from train.errors import one_line

Trouble = tuple[str, str]  # what was wrong and what was done; the file, with a detail


class Picture(NamedTuple):
    """A decoded picture and its objects.

    To save decoding time, the image may be smaller than the picture by an integer factor: one of
    its pixels stands for `reduced` x `reduced` pixels of the picture.
    """

    image: Image.Image  # RGB, size ceil(width / reduced) x ceil(height / reduced)
    size: tuple[int, int]  # width and height, in pixels: the frame of the boxes
    boxes: Float32[np.ndarray, "N 4"]  # left, top, right, bottom, in pixels of that frame
    labels: Int32[np.ndarray, "N"]
    reduced: int = 1


class Pictures(Protocol):
    """Random access to pictures: cheap to pickle, with the same result for every call."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
        ...

    @property
    def most_objects(self) -> int:
        """The largest number of objects in a picture."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int, needed: int) -> Picture:
        """Decodes a picture; `needed` pixels along its longer side are enough."""
        ...

    def fingerprint(self) -> dict[str, int | str]:
        """Counts and a checksum, to tell whether the data changed."""
        ...


class Entry(NamedTuple):
    """A usable picture as described by its folder or record."""

    key: str  # its name in messages
    size: tuple[int, int]  # width and height, in pixels
    crc32: int  # of the encoded image
    objects: list[tuple[str, tuple[float, float, float, float]]]  # class name, box in pixels


class Encoded(Protocol):
    """Random access to the bytes of encoded images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> bytes: ...


class Files:
    """The contents of files, read on access."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(str(path) for path in paths)  # strings pickle faster than paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        return Path(self._paths[index]).read_bytes()


@dataclass(frozen=True)
class Annotated:
    """Encoded pictures from one or several places, and their objects in memory."""

    names: tuple[str, ...]
    parts: tuple[Encoded, ...]  # the places, in order
    keys: tuple[str, ...]
    sizes: Int32[np.ndarray, "pictures 2"]
    boxes: Float32[np.ndarray, "objects 4"]
    labels: Int32[np.ndarray, "objects"]
    ends: Int64[np.ndarray, "pictures+1"]  # objects of picture i: [ends[i], ends[i + 1])
    crc32: int

    @property
    def most_objects(self) -> int:
        """The largest number of objects in a picture."""
        return int(np.diff(self.ends).max(initial=0))

    def __len__(self) -> int:
        return len(self.keys)

    def load(self, index: int, needed: int) -> Picture:
        """Decodes a picture; one that can no longer be decoded becomes gray, without objects.

        Every picture was decoded once before training, so this happens only if a disk fails. The
        substitute keeps all other positions of the data, and thus resumed runs, exact.
        """
        width, height = (int(side) for side in self.sizes[index])
        try:
            image = decode(self._encoded(index), needed)
            reduced = _factor((width, height), image.size)
        except Exception as error:  # decoders raise anything
            warn_once(
                f"{self.keys[index]} can no longer be read ({error}); a gray picture without "
                "objects takes its place"
            )
            image = Image.new("RGB", (width, height), GRAY)
            return Picture(image, (width, height), np.zeros((0, 4), np.float32), _NO_LABELS)
        own = slice(self.ends[index], self.ends[index + 1])
        return Picture(image, (width, height), self.boxes[own], self.labels[own], reduced)

    def fingerprint(self) -> dict[str, int | str]:
        """Counts, and a checksum over images, boxes and class names."""
        return {
            "images": len(self),
            "objects": len(self.labels),
            "classes": len(self.names),
            "crc32": self.crc32,
        }

    def _encoded(self, index: int) -> bytes:
        """The bytes of a picture's file."""
        starts = [0, *itertools.accumulate(len(part) for part in self.parts)]
        part = bisect.bisect_right(starts, index) - 1
        return self.parts[part][index - starts[part]]


class Cache:
    """Pictures that stay in memory once decoded, while there is room; pickled without them."""

    def __init__(self, pictures: Pictures, mebibytes: int) -> None:
        self._pictures, self._mebibytes = pictures, mebibytes
        self._kept: dict[int, Picture] = {}
        self._free = mebibytes * 2**20

    @property
    def names(self) -> tuple[str, ...]:
        """Class names."""
        return self._pictures.names

    @property
    def most_objects(self) -> int:
        """The largest number of objects in a picture."""
        return self._pictures.most_objects

    def __len__(self) -> int:
        return len(self._pictures)

    def load(self, index: int, needed: int) -> Picture:
        """Decodes a picture on its first call; `needed` must be the same in every call."""
        picture = self._kept.get(index)
        if picture is None:
            picture = self._pictures.load(index, needed)
            size = 4 * picture.image.width * picture.image.height  # Pillow keeps 4 bytes per pixel
            if size <= self._free:
                self._free -= size
                self._kept[index] = picture
        return picture

    def fingerprint(self) -> dict[str, int | str]:
        """The fingerprint of the pictures."""
        return self._pictures.fingerprint()

    def __reduce__(self) -> tuple[type["Cache"], tuple[Pictures, int]]:
        return Cache, (self._pictures, self._mebibytes)


def _factor(size: tuple[int, int], decoded: tuple[int, int]) -> int:
    """The factor by which a picture was reduced when it was decoded."""
    for factor in (1, 2, 4, 8):
        if decoded == tuple(-(-side // factor) for side in size):
            return factor
    raise ValueError(
        f"it had {size[0]} x {size[1]} pixels, and has {decoded[0]} x {decoded[1]} now"
    )


_NO_LABELS = np.zeros(0, np.int32)


def annotated(
    names: tuple[str, ...], scans: Sequence[tuple[Encoded, list[Entry]]]
) -> tuple[Annotated, list[Trouble]]:
    """Joins places into one set of pictures, in order.

    Args:
        names: class names; objects of other classes are dropped.
        scans: the encoded pictures of each place and, in the same order, their entries.

    Returns:
        The pictures, and what was dropped.
    """
    index = {name: label for label, name in enumerate(names)}
    entries = [entry for _, part in scans for entry in part]
    trouble: list[Trouble] = []
    boxes, labels, ends = [], [], [0]
    for entry in entries:
        for name, box in entry.objects:
            if name in index:
                boxes.append(box)
                labels.append(index[name])
            else:
                trouble.append(("object of an unknown class, dropped", f"{entry.key}: {name}"))
        ends.append(len(labels))
    arrays = {
        "sizes": np.asarray([entry.size for entry in entries], np.int32).reshape(-1, 2),
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "labels": np.asarray(labels, np.int32),
        "ends": np.asarray(ends, np.int64),
    }
    images = np.asarray([entry.crc32 for entry in entries], np.uint32)
    crc32 = zlib.crc32("\n".join(names).encode())
    for array in (images, *arrays.values()):
        crc32 = zlib.crc32(array.tobytes(), crc32)
    keys = tuple(entry.key for entry in entries)
    parts = tuple(files for files, _ in scans)
    return Annotated(names, parts, keys, crc32=crc32, **arrays), trouble


def report(
    trouble: Sequence[Trouble], place: str, *, left_out: Sequence[tuple[str, str]] = ()
) -> None:
    """Prints warnings to standard error, one for each kind of trouble and one for left-out files.

    Args:
        trouble: kind and file of each; a warning has their number and the first files.
        place: where it is, the start of each line.
        left_out: reason and name of each file that was not read.
    """
    if left_out:
        _warn(f"{place}: {describe(left_out)}")
    found: dict[str, list[str]] = {}
    for kind, key in trouble:
        found.setdefault(kind, []).append(key)
    for kind, keys in found.items():
        files = list(dict.fromkeys(keys))
        more = f" and {len(files) - 3} more files" if len(files) > 3 else ""
        _warn(one_line(f"{place}: {kind}: {len(keys)} ({', '.join(files[:3])}{more})"))


def _warn(text: str) -> None:
    """Prints a warning to standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


warn_once = functools.cache(_warn)  # once in each process that makes batches
