"""Writing files so that a kill at any moment leaves the old content or the new, never a mix."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name in the same folder, then renames it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
