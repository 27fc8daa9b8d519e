"""Presets: one file each, with a `CONFIG` and `OPTIMIZERS` whose settings suit it."""

import importlib
import pkgutil
from types import ModuleType

from train.errors import BadInput, did_you_mean


def names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Imports a preset.

    Raises:
        BadInput: there is none of that name; the message lists the existing ones.
    """
    if name not in names():
        raise BadInput(
            f"preset {name!r} is unknown{did_you_mean(name, names())}; the presets are "
            f"{', '.join(names())}, --help describes them"
        )
    return importlib.import_module(f"{__name__}.{name}")
