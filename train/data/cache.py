"""Folders that are made once: under a lock, sealed with checksums, and renamed into place."""

import contextlib
import hashlib
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from train.errors import BadInput, MachineError
from train.files import machine_failed
from train.integrity import damage, seal

Note = Callable[[str], None]  # shows a line to the user
_CLEAR = "\r\x1b[2K"  # empties the line of a terminal


def fingerprint(*parts: object) -> str:
    """A name that identifies some values: 16 hexadecimal digits.

    Example:
        >>> fingerprint("text", 1) == fingerprint("text", 1) != fingerprint("text", 2)
        True
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_preparing: list[list[str]] = []  # lines that are held back, for each folder being made


def note(text: str) -> None:
    """Prints a line about preparing data on standard error.

    While a folder is made, the line is gone if that fails, so that the error stands alone: a
    terminal shows it until the next one, other output gets it when the folder is there.
    """
    if not _preparing:
        print(text, file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"{_CLEAR}{text}", end="", file=sys.stderr, flush=True)
    else:
        _preparing[-1].append(text)


def cached(root: Path, name: str, make: Callable[[Path], None], *, note: Note = note) -> Path:
    """Returns the intact folder `root/name`, after making it if it is missing or damaged.

    A process that is killed halfway leaves nothing that counts as the folder. If several processes
    want it at once, one makes it and the others wait.

    Args:
        root: the cache; made if it is missing.
        name: of the folder; different content needs a different name.
        make: fills the empty folder that it gets.
        note: gets a line if the folder is damaged, or if another process is making it.

    Returns:
        The folder, whose files agree with its `INTEGRITY.json`.

    Raises:
        BadInput: the cache cannot be written there.
        MachineError: the disk is full.
    """
    folder, temporary = root / name, root / f".{name}.{uuid.uuid4().hex}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{name}.lock", folder, note):
            if folder.exists():
                wrong = damage(folder)
                if wrong is None:
                    return folder
                note(f"warning: {folder} is damaged ({wrong}); making it again")
                shutil.rmtree(folder)
            for abandoned in root.glob(f".{name}.*.tmp"):  # by killed processes: we hold the lock
                shutil.rmtree(abandoned)
            temporary.mkdir()
            with _lines_go_if_it_fails():
                make(temporary)
                seal(temporary)
                temporary.rename(folder)
    except OSError as error:
        if machine_failed(error):
            raise MachineError(f"cannot write {folder}: {error.strerror}") from error
        raise BadInput(
            f"cannot keep prepared data in {root}: {error}; choose another folder with --data.cache"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _lines_go_if_it_fails() -> Iterator[None]:
    """Holds the lines of `note` back, and prints them at the end if there is no error."""
    _preparing.append([])
    try:
        yield
    except BaseException:
        _preparing.pop()
        raise
    finally:
        if sys.stderr.isatty():
            print(_CLEAR, end="", file=sys.stderr, flush=True)
    for text in _preparing.pop():
        note(text)


@contextlib.contextmanager
def _locked(path: Path, folder: Path, note: Note) -> Iterator[None]:
    """Holds a lock that the system releases if the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: only the rename keeps a folder whole
        yield
        return
    with path.open("w", encoding="utf-8") as file:
        _lock(fcntl, file, folder, note)
        yield


def _lock(fcntl: Any, file: TextIO, folder: Path, note: Note) -> None:
    """Takes the lock, and reports if it has to wait for it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"waiting for another process that prepares {folder}")
        fcntl.flock(file, fcntl.LOCK_EX)
