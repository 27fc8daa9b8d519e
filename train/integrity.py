"""Folders with a manifest: sizes and checksums of their files, compared before use."""

import json
import zlib
from pathlib import Path

from train.files import write_atomically

INTEGRITY = "INTEGRITY.json"
_CHUNK = 1 << 22  # bytes read at a time


def seal(folder: Path) -> None:
    """Writes the size and CRC-32 of every file of a finished folder to its `INTEGRITY.json`."""
    write_atomically(folder / INTEGRITY, json.dumps(_checksums(folder), indent=1))


def damage(folder: Path) -> str | None:
    """Describes the first damage to a sealed folder, or returns None if all checksums match."""
    try:
        expected = json.loads((folder / INTEGRITY).read_text())
    except FileNotFoundError:
        return f"{INTEGRITY} is missing: the process ended while it was written"
    except ValueError:
        return f"{INTEGRITY} is unreadable"
    found = _checksums(folder)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if found[name][0] != expected[name][0]:
            return f"{name} has {found[name][0]} bytes instead of {expected[name][0]}"
        if found[name] != expected[name]:
            return f"the checksum of {name} is wrong"
    return None


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / INTEGRITY)
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, _crc32(p)] for p in files}


def _crc32(path: Path) -> int:
    """CRC-32 of the content of a file."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
