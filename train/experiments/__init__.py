"""Experiments: one file each, whose `SCALES` say what is run at the paper's and at small scale."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, Self

from train.errors import BadInput, did_you_mean
from train.report import Report


class Experiment(Protocol):
    """What `python -m train compare` runs."""

    def run(
        self,
        directory: Path,
        *,
        seeds: Sequence[int],
        sweep: str | None,
        say: Callable[[str], None],
    ) -> Report:
        """Runs what is not in the directory yet, and reports all of it.

        Args:
            directory: where results are kept from one call to the next, and pictures go.
            seeds: of the runs.
            sweep: which settings are tried, see `train.experiments.comparison`; None: the
                experiment's own choice.
            say: prints a line of progress.
        """
        ...

    def with_data(self, **fields: Path) -> Self:
        """The same on other data: fields of the task's `data`.

        Raises:
            BadInput: there are no such fields.
        """
        ...


def names() -> list[str]:
    """The experiments, sorted."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [n for n in modules if hasattr(importlib.import_module(f"{__name__}.{n}"), "SCALES")]


def load(name: str) -> ModuleType:
    """Imports an experiment.

    Raises:
        BadInput: there is none of that name; with those there are.
    """
    if name not in names():
        raise BadInput(
            f"experiment {name!r} is unknown{did_you_mean(name, names())}; the experiments are "
            f"{', '.join(names())}"
        )
    return importlib.import_module(f"{__name__}.{name}")
