"""Folders with a manifest: sizes and checksums of their files, compared before use."""

import json
import zlib
from pathlib import Path
from typing import Any

from train.files import write_atomically

INTEGRITY = "INTEGRITY.json"
_CHUNK = 1 << 22  # bytes read at a time


def seal(folder: Path) -> None:
    """Writes the size and CRC-32 of every file of a finished folder to its `INTEGRITY.json`."""
    write_atomically(folder / INTEGRITY, json.dumps(_checksums(folder), indent=1))


def damage(folder: Path) -> str | None:
    """Describes the first damage to a sealed folder, or returns None if all checksums match."""
    try:
        expected = read_json(folder / INTEGRITY, dict)
    except FileNotFoundError:
        return f"{INTEGRITY} is missing: the process ended while it was written"
    except (OSError, ValueError) as error:
        return f"{INTEGRITY} is unreadable: {error}"
    try:
        found = _checksums(folder)
    except OSError as error:
        return f"a file is unreadable: {error}"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if found[name] != expected[name]:
            size = (
                expected[name][0] if isinstance(expected[name], list) and expected[name] else None
            )
            if found[name][0] != size:
                return f"{name} has {found[name][0]} bytes instead of {size}"
            return f"the checksum of {name} is wrong"
    return None


def checksum(content: bytes) -> list[int]:
    """Size and CRC-32 of a content, as in a manifest.

    Example:
        >>> checksum(b"abc")
        [3, 891568578]
    """
    return [len(content), zlib.crc32(content)]


def read_json(path: Path, kind: type) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or its value is not of the type `kind`.
    """
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise ValueError(f"{path.name} is not a file")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path.name} holds {json.dumps(value)[:40]}, not a JSON {kind.__name__}")
    return value


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / INTEGRITY)
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, _crc32(p)] for p in files}


def _crc32(path: Path) -> int:
    """CRC-32 of the content of a file."""
    crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32
