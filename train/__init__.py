"""Training programs: tasks, data, mesh, loop, checkpoints, presets, command line.

`run(config)` trains; `python -m train` is the same from a command line.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import Config
    from train.errors import BadInput, TrainingStopped
    from train.loop import run
    from train.run_directory import Result

__all__ = ["BadInput", "Config", "Result", "TrainingStopped", "run"]

_MODULES = {
    "BadInput": "train.errors",
    "Config": "train.config",
    "Result": "train.run_directory",
    "TrainingStopped": "train.errors",
    "run": "train.loop",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are used, so that `python -m train` starts at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _require_own_models()
    return getattr(importlib.import_module(_MODULES[name]), name)


def _require_own_models() -> None:
    """Raises if `models` is another package than the one beside this one."""
    found, here = importlib.util.find_spec("models"), Path(__file__).resolve().parent
    origin = None if found is None or found.origin is None else Path(found.origin).resolve()
    if origin != here.parent / "models" / "__init__.py":
        raise ImportError(
            f"`train` of {here} needs the package `models` beside it, and Python finds "
            f"{origin or 'none'}; put {here.parent} first on PYTHONPATH, or rename the other one"
        )
