"""Writing files: a kill leaves the old content or the new, and a full disk gives one line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from train.errors import MachineError


def machine_failed(error: OSError) -> bool:
    """Whether a folder may be used, but the machine failed: a full disk, a quota, a bad sector."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of the operating system into a `MachineError` that names what was written.

    Example:
        >>> with writing(Path("run/metrics.jsonl")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        train.errors.MachineError: cannot write run/metrics.jsonl: No space left on device
    """
    try:
        yield
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the same folder, and renames it to `path` if nothing fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 text file under a temporary name, then renames it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
