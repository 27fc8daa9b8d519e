"""Tasks: a configuration each, and the model, data, loss and evaluation that it defines."""

import importlib
import pkgutil


def load_all() -> None:
    """Imports every task, so that the subclasses of `Config` are known."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
