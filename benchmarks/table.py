"""Rows of named numbers as text and as JSON."""

import functools
import json
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    *(f"jax-cuda{major}-plugin" for major in (12, 13)),
    *(f"nvidia-cudnn-cu{major}" for major in (12, 13)),
    *("torch", "triton", "gram-newton-schulz"),
)


def show(row: Any) -> str:
    """One value, in few characters."""
    if isinstance(row, float):
        return "-" if row != row else f"{row:.4g}"
    return str(row)


def stream(
    rows: Iterable[NamedTuple], path: Path | None, devices: Sequence[str] | None = None
) -> list[NamedTuple]:
    """Prints rows as they come, with a header for each kind of row, and writes them to a file.

    Args:
        rows: measured when they are asked for.
        path: JSON, complete after every row. None: no file.
        devices: what the rows were measured on. None: the devices of this process.

    Returns:
        The rows.
    """
    printed: list[NamedTuple] = []
    for row in rows:
        if not printed or printed[-1]._fields != row._fields:
            print("  ".join(f"{name:>12}" for name in row._fields), flush=True)
        print("  ".join(f"{show(value):>12}" for value in row), flush=True)
        printed.append(row)
        if path:
            _save(path, printed, devices)  # half an hour of measuring may be cut short
    return printed


def _save(path: Path, rows: Sequence[NamedTuple], devices: Sequence[str] | None) -> None:
    """Writes rows, and what they were measured with; a file is replaced by a whole one."""
    if devices is None:
        devices = [device.device_kind for device in jax.devices()]
    record = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": _versions(),
        "devices": list(devices),
        "machine": platform.machine(),
        "rows": [row._asdict() for row in rows],
    }
    written = path.with_name(f".{path.name}")
    written.write_text(json.dumps(record, indent=1) + "\n")
    written.replace(path)


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of the packages that times depend on, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
