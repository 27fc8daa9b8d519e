"""Rows of named numbers as text and as JSON."""

import json
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax


def show(row: Any) -> str:
    """One value, in few characters."""
    if isinstance(row, float):
        return "-" if row != row else f"{row:.4g}"
    return str(row)


def stream(rows: Iterable[NamedTuple], path: Path | None) -> None:
    """Prints rows as they come, with a header for each kind of row, and writes them to a file."""
    printed: list[NamedTuple] = []
    for row in rows:
        if not printed or printed[-1]._fields != row._fields:
            print("  ".join(f"{name:>12}" for name in row._fields), flush=True)
        print("  ".join(f"{show(value):>12}" for value in row), flush=True)
        printed.append(row)
        if path:
            _save(path, printed)  # after every row: half an hour of measuring may be cut short


def _save(path: Path, rows: Sequence[NamedTuple]) -> None:
    """Writes rows, and what they were measured with."""
    record = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "flax": version("flax"),
        "optax": optax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "machine": platform.machine(),
        "rows": [row._asdict() for row in rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
