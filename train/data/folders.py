"""Which files belong to a folder or an archive: one rule for every reader.

1. Hidden and system files and folders are ignored: `.DS_Store`, `.ipynb_checkpoints`, `__MACOSX`.
2. Links to files and folders are followed, but no file is read twice, and a link to a folder that
   contains it is ignored.
3. Suffixes match in upper and lower case.
4. What is left out (files of another type, empty files, broken links) is counted.
"""

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, NamedTuple, TypeVar

from train.errors import BadInput, one_line

SYSTEM_NAMES = {
    *("__macosx", "icon\r"),  # macOS
    *("desktop.ini", "ehthumbs.db", "thumbs.db", "$recycle.bin", "system volume information"),
    *("@eadir", "lost+found", "__pycache__"),  # network storage, Linux, Python
}

FOREIGN, EMPTY, BROKEN, REPEATED, LINK = (
    "of another type",
    "empty",
    "behind a broken link",
    "read already under another name",
    "stored as a link",
)

# What reading a damaged archive raises, besides OSError.
ARCHIVE_ERRORS = (
    *(ValueError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
    *(RuntimeError, NotImplementedError),  # an encrypted archive, an unknown compression
)

T = TypeVar("T")


class Listing(NamedTuple, Generic[T]):
    """The files to read, sorted by name, and those that are left out."""

    files: list[T]
    left_out: list[tuple[str, str]]  # reason, name relative to the folder or archive


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden or made by an operating system, by its name.

    Example:
        >>> [is_ignored(name) for name in (".DS_Store", "._a.txt", "Thumbs.db", "a.txt")]
        [True, True, True, False]
    """
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in SYSTEM_NAMES


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Whether a name ends in one of the suffixes, in upper or lower case.

    Example:
        >>> has_suffix("A.TXT", (".txt", ".txt.xz")), has_suffix("a.txt.XZ", (".txt",))
        (True, False)
    """
    return name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def list_files(folder: Path, suffixes: Collection[str], *, recursive: bool = True) -> Listing[Path]:
    """Lists the files of a folder that have one of the suffixes, by the rule of this module.

    A file with several names is listed under the first of those that take the fewest links.

    Args:
        folder: where to look; its own name may be hidden.
        suffixes: with their dots; several parts are possible, as in ".txt.xz".
        recursive: also read the folders below it.

    Returns:
        The files, sorted by the parts of their names; and what was left out, sorted likewise.

    Raises:
        BadInput: a folder that cannot be read.
    """
    found: dict[str, str | None] = {}  # name: why it is left out, None if it is read
    seen: set[str] = set()  # real paths of the files that are read
    for name, real in _paths(os.path.realpath(folder), recursive):
        reason = _reason(name, Path(real), suffixes)
        if reason is None:
            reason = REPEATED if real in seen else None
            seen.add(real)
        found[name] = reason
    names = sorted(found, key=lambda name: name.split("/"))
    return Listing(
        [folder / name for name in names if found[name] is None],
        [(reason, name) for name in names if (reason := found[name]) is not None],
    )


def list_archive(
    archive: zipfile.ZipFile | tarfile.TarFile, suffixes: Collection[str]
) -> Listing[str]:
    """Lists the files in an archive that have one of the suffixes, by the rule of this module.

    Links inside an archive are left out: what they name is in the archive under its own name.

    Args:
        archive: an open archive.
        suffixes: with their dots.

    Returns:
        Names as the archive has them, sorted by their parts; and what was left out.
    """
    found: dict[str, str | None] = {}
    for name, size, is_link in _members(archive):
        if not any(map(is_ignored, inside(name).parts)):
            found[name] = LINK if is_link else _reason_by_size(name, size, suffixes)
    names = sorted(found, key=lambda name: inside(name).parts)
    return Listing(
        [name for name in names if found[name] is None],
        [(reason, str(inside(name))) for name in names if (reason := found[name]) is not None],
    )


def inside(name: str) -> PurePosixPath:
    r"""The path of a member of an archive, with either kind of slash.

    Example:
        >>> inside("./cat/1.png") == inside("cat\\1.png") == PurePosixPath("cat/1.png")
        True
    """
    return PurePosixPath(name.replace("\\", "/"))


def describe(left_out: Sequence[tuple[str, str]]) -> str:
    """Counts what was left out, in one line that names the first file of each kind.

    Args:
        left_out: reason and name of each file; the reason completes "1 file is ...".

    Returns:
        The line; empty if nothing was left out.

    Example:
        >>> describe([("empty", "b.txt"), ("of another type", "a.pdf"), ("empty", "c.txt")])
        '3 files left out: 2 empty (first: b.txt), 1 of another type (first: a.pdf)'
    """
    kinds: dict[str, list[str]] = {}
    for reason, name in left_out:
        kinds.setdefault(reason, []).append(name)
    parts = (f"{len(names)} {reason} (first: {names[0]})" for reason, names in kinds.items())
    files = "file" if len(left_out) == 1 else "files"
    return one_line(f"{len(left_out)} {files} left out: {', '.join(parts)}") if left_out else ""


def _paths(root: str, recursive: bool) -> Iterator[tuple[str, str]]:
    """Relative name and real path of files and links, sorted by the number of links followed."""
    seen: set[str] = set()  # folders
    starts, ends = [("", root)], []  # folders and files, each with its real path
    while starts or ends:
        links: list[tuple[str, str, str]] = []  # name, holder, target
        for name, real in starts:
            for path, holder, entry in _walk(name, real, recursive, seen):
                if entry.is_symlink():
                    links.append((path, holder, _target(entry.path)))
                else:
                    ends.append((path, entry.path))
        yield from sorted(ends, key=_parts)
        starts, ends = [], []
        for name, holder, real in sorted(links, key=_parts):
            if not Path(real).is_dir():
                ends.append((name, real))
            elif recursive and not (_contains(real, holder) or _contains(real, root)):
                starts.append((name, real))


def _parts(item: tuple[str, ...]) -> list[str]:
    """Sort key of a name: the parts between slashes."""
    return item[0].split("/")


def _walk(
    name: str, real: str, recursive: bool, seen: set[str]
) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
    """Files and links below a folder, unless it was seen before: name, folder, entry."""
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(real) as entries:
            visible = sorted((e for e in entries if not is_ignored(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise BadInput(f"cannot read the folder {real}: {error.strerror}") from error
    for entry in visible:
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.is_symlink() or not entry.is_dir():
            yield path, real, entry
        elif recursive:
            yield from _walk(path, entry.path, recursive, seen)


def _target(link: str) -> str:
    """The target of a link; the link itself if it is broken."""
    try:
        return os.path.realpath(link, strict=True)
    except OSError:
        return link


def _contains(folder: str, inner: str) -> bool:
    """Whether a folder is the other one or contains it; both are real paths."""
    return Path(inner).is_relative_to(folder)


def _reason(name: str, real: Path, suffixes: Collection[str]) -> str | None:
    """Why a file is left out, None if it is read."""
    try:
        status = real.stat()
    except OSError:
        return BROKEN
    if not stat.S_ISREG(status.st_mode):  # a pipe would never end
        return FOREIGN
    return _reason_by_size(name, status.st_size, suffixes)


def _reason_by_size(name: str, size: int, suffixes: Collection[str]) -> str | None:
    """Why a file with a name and a size in bytes is left out, None if it is read."""
    if not has_suffix(name, suffixes):
        return FOREIGN
    return EMPTY if size == 0 else None


def _members(
    archive: zipfile.ZipFile | tarfile.TarFile,
) -> Iterable[tuple[str, int, bool]]:
    """Name, size in bytes, and whether it is a link, of all members that are not folders."""
    if isinstance(archive, tarfile.TarFile):
        return [(m.name, m.size, m.issym() or m.islnk()) for m in archive if not m.isdir()]
    return [
        (info.filename, info.file_size, stat.S_ISLNK(info.external_attr >> 16))
        for info in archive.infolist()
        if not info.is_dir()
    ]
