"""Experiments: one file each, whose `SCALES` define what runs at small and at the paper's scale."""

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
        """Runs what the directory does not contain yet, and reports everything.

        Args:
            directory: where results are kept between calls, and pictures are written.
            seeds: one run is made per seed.
            sweep: which settings are tried, see `train.experiments.sweep`; None: the experiment's
                own choice.
            say: prints a line of progress.
        """
        ...

    def with_data(self, **fields: Path) -> Self:
        """The same experiment on other data.

        Args:
            **fields: new values of fields of the task's `data`.

        Raises:
            BadInput: there are no such fields.
        """
        ...


def names() -> list[str]:
    """The names of the experiments, sorted."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [n for n in modules if hasattr(importlib.import_module(f"{__name__}.{n}"), "SCALES")]


def load(name: str) -> ModuleType:
    """Imports an experiment.

    Raises:
        BadInput: there is none of that name; the message lists the existing ones.
    """
    if name not in names():
        raise BadInput(
            f"experiment {name!r} is unknown{did_you_mean(name, names())}; the experiments are "
            f"{', '.join(names())}"
        )
    return importlib.import_module(f"{__name__}.{name}")
