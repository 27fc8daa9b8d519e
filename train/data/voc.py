"""Pascal VOC: folders of JPEGImages, Annotations and ImageSets, and flat folders."""

import codecs
import functools
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from train.data.decoding import IMAGE_SUFFIXES, check_image
from train.data.folders import has_suffix, is_ignored, list_files
from train.data.pictures import Encoded, Entry, Files, Trouble
from train.data.voc_annotation import parse_annotation
from train.errors import did_you_mean, require

IMAGE_FOLDERS = ("jpegimages", "images")  # names in any case, the preferred one first
LABELS = ("-1", "0", "1")  # after a name in the list of a class

Pair = tuple[Path | None, Path | None]  # annotation and image


class Scan(NamedTuple):
    """What a place holds: encoded pictures, one entry each, and what was wrong."""

    files: Encoded
    entries: list[Entry]
    trouble: list[Trouble]
    left_out: Sequence[tuple[str, str]] = ()  # files that were not read: reason, name


class Layout(NamedTuple):
    """The files of a folder by the name that pairs them: the path in it without suffix."""

    annotations: dict[str, Path]
    images: dict[str, Path]
    left_out: list[tuple[str, str]]

    @property
    def stems(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.annotations.keys() | self.images.keys())

    def pair(self, stem: str) -> Pair:
        """Annotation and image of a name."""
        return self.annotations.get(stem), self.images.get(stem)


def scan_folder(folder: Path, split: str | None = None) -> Scan:
    """Reads a folder in VOC layout: every annotation, and every image once to its end.

    Images are in `JPEGImages` (or `images`) and annotations in `Annotations`, or both in the
    folder itself. A split is a list `ImageSets/Main/SPLIT.txt` or a folder `SPLIT`; `A+B` joins
    two, None takes every annotation. Names of these folders match in any case.

    Args:
        folder: the folder.
        split: which part of it.

    Returns:
        Usable pictures in the order of the list, or sorted; and what was skipped or changed.

    Raises:
        BadInput: no such folder, no such split, or no usable picture.
    """
    require(folder.is_dir(), f"{folder} is not a folder; it should hold JPEGImages and Annotations")
    pairs: list[Pair] = []
    trouble: list[Trouble] = []
    left_out: list[tuple[str, str]] = []
    for part in (split or "").split("+"):
        found, missing, ignored = _pairs(folder, part)
        pairs, trouble, left_out = pairs + found, trouble + missing, left_out + ignored
    read = functools.partial(_read_pair, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and reading release the lock
        results = list(pool.map(read, dict.fromkeys(pairs)))
    usable = [(image, entry) for image, entry, _ in results if image and entry]
    trouble += [item for _, _, found in results for item in found]
    where = f"{folder}" + (f", split {split}" if split else "")
    first = f"; the first of {len(trouble)} reasons: {': '.join(trouble[0])}" if trouble else ""
    require(bool(usable), f"{where} holds no usable picture with an annotation{first}")
    files, entries = Files(image for image, _ in usable), [entry for _, entry in usable]
    return Scan(files, entries, trouble, list(dict.fromkeys(left_out)))


def _pairs(folder: Path, split: str) -> tuple[list[Pair], list[Trouble], list[tuple[str, str]]]:
    """Pairs of a split ("" for all), listed names without files, and files that are left out."""
    lists = _lists(folder)
    if split in lists:
        layout, path = _layout(folder, folder), lists[split]
        stems = [(line, _stem(line, layout)) for line in _lines(path)]
        missing = [line for line, stem in stems if stem is None]
        kind, where = "listed picture that is not there, skipped", path.relative_to(folder)
        trouble = [(kind, f"{where}: {line}") for line in missing]
        return [layout.pair(stem) for _, stem in stems if stem], trouble, layout.left_out
    known = sorted(lists.keys() | _split_folders(folder))
    require(
        not split or (folder / split).is_dir(),
        f"{folder} has no split {split!r}{did_you_mean(split, known)}: neither "
        f"ImageSets/Main/{split}.txt nor a folder {split}; it has {', '.join(known) or 'none'}",
    )
    layout = _layout(folder / split, folder)
    return [layout.pair(stem) for stem in layout.stems], [], layout.left_out


def _lists(folder: Path) -> dict[str, Path]:
    """The lists of splits, by name."""
    sets = _subfolder(folder, ("imagesets",))
    main = _subfolder(sets, ("main",)) if sets else None
    files = sorted(main.iterdir()) if main else []
    visible = (p for p in files if not is_ignored(p.name) and p.is_file())
    return {path.stem: path for path in visible if has_suffix(path.name, (".txt",))}


def _lines(path: Path) -> list[str]:
    """The lines of a list without blank ends; UTF-8 or UTF-16, with or without byte-order mark.

    Other bytes are kept as in file names.
    """
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8", errors="surrogateescape")
    return [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]


def _stem(line: str, layout: Layout) -> str | None:
    """The name in a layout that a line of a list refers to, None if there is none.

    A line is a name, with or without folders before it, a suffix, and the label of a class.
    """
    names = [line]
    if line.endswith(LABELS) and len(words := line.rsplit(maxsplit=1)) == 2:
        names += [words[0]] if words[1] in LABELS else []
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for stem in (tail, _without_suffix(tail)):
                if stem in layout.annotations or stem in layout.images:
                    return stem
    return None


def _layout(folder: Path, top: Path) -> Layout:
    """Finds annotations and images of a folder; names that are left out are relative to `top`."""
    places = {
        (".xml",): _subfolder(folder, ("annotations",)),
        IMAGE_SUFFIXES: _subfolder(folder, IMAGE_FOLDERS),
    }
    if not any(places.values()):
        places = {(".xml", *IMAGE_SUFFIXES): None}
    annotations: dict[str, Path] = {}
    images: dict[str, Path] = {}
    left_out: list[tuple[str, str]] = []
    for suffixes, own in places.items():
        place = own or folder  # its sub-folders may be splits
        listing = list_files(place, suffixes, recursive=own is not None)
        left_out += [
            (reason, (place / name).relative_to(top).as_posix())
            for reason, name in listing.left_out
        ]
        for path in sorted(listing.files, key=_preference):
            stem = _without_suffix(path.relative_to(place).as_posix())
            kind = annotations if has_suffix(path.name, (".xml",)) else images
            if kind.setdefault(stem, path) != path:
                name = path.relative_to(top).as_posix()
                left_out.append(("of a name that another file has already", name))
    return Layout(annotations, images, left_out)


def _preference(path: Path) -> int:
    """The order of files with one name: that of the suffixes."""
    suffix = path.suffix.lower()
    return IMAGE_SUFFIXES.index(suffix) if suffix in IMAGE_SUFFIXES else 0


def _without_suffix(name: str) -> str:
    """A name without the suffix of an image or annotation."""
    return name.rsplit(".", 1)[0] if has_suffix(name, (".xml", *IMAGE_SUFFIXES)) else name


def _subfolder(folder: Path, names: Collection[str]) -> Path | None:
    """The folder in a folder that has one of the lower-case names, in any case; or None."""
    folders = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
    for wanted in names:
        for name, path in folders.items():
            if name.lower() == wanted:
                return path
    return None


def _split_folders(folder: Path) -> Iterator[str]:
    """Folders that could be splits."""
    own = {*IMAGE_FOLDERS, "annotations", "imagesets", "segmentationclass", "segmentationobject"}
    for path in folder.iterdir():
        if path.is_dir() and path.name.lower() not in own and not is_ignored(path.name):
            yield path.name


def _read_pair(folder: Path, pair: Pair) -> tuple[Path | None, Entry | None, list[Trouble]]:
    """Reads and checks one picture; without an entry, what is wrong with it."""
    annotation, image = pair
    keys = [str(path.relative_to(folder)) if path else "" for path in pair]
    if image is None:
        return None, None, [("annotation without an image, skipped", keys[0])]
    if annotation is None:
        return image, None, [("image without an annotation, skipped", keys[1])]
    try:
        encoded = image.read_bytes()
        frame = check_image(encoded)
    except (OSError, ValueError) as error:
        return image, None, [("broken image, skipped", f"{keys[1]}: {error}")]
    try:
        objects, problems = parse_annotation(annotation.read_bytes(), frame)
    except (OSError, ValueError) as error:
        return image, None, [("broken annotation, skipped", f"{keys[0]}: {error}")]
    trouble = [(kind, f"{keys[0]}: {more}" if more else keys[0]) for kind, more in problems]
    return image, Entry(keys[1], frame.size, zlib.crc32(encoded), objects), trouble
