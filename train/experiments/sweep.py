"""Which settings of every optimizer are tried, such as `learning_rate=x0.3,x1,x3`.

Options that are separated by a space are tried together, in all combinations.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from train.errors import BadInput, require
from train.optimizers import Optimizer


class Sweep(NamedTuple):
    """One option, and the values or factors to try."""

    field: str  # an option of every optimizer that is compared
    values: tuple[float, ...]
    relative: bool  # whether values are factors of each optimizer's own setting


def parse_sweeps(text: str) -> tuple[Sweep, ...]:
    """Reads a sweep over one or several options.

    Args:
        text: `OPTION=VALUE,...`, several separated by spaces; with an `x` before each value of an
            option, they are factors of every optimizer's own setting.

    Raises:
        BadInput: the text has another form.

    Example:
        >>> [sweep.field for sweep in parse_sweeps("learning_rate=x0.5,x1 threshold=0.1,0.2")]
        ['learning_rate', 'threshold']
    """
    sweeps = tuple(map(parse_sweep, text.split() or [text]))
    fields = [sweep.field for sweep in sweeps]
    require(len(set(fields)) == len(fields), f"--sweep {text!r} has an option twice")
    return sweeps


def parse_sweep(text: str) -> Sweep:
    """Reads a sweep over one option.

    Raises:
        BadInput: the text has another form.

    Example:
        >>> parse_sweep("learning_rate=x0.5,x1")
        Sweep(field='learning_rate', values=(0.5, 1.0), relative=True)
    """
    field, equals, listed = text.partition("=")
    parts = [part.strip() for part in listed.split(",")]
    relative = all(part.startswith("x") for part in parts)
    try:
        values = tuple(float(part.removeprefix("x") if relative else part) for part in parts)
    except ValueError:
        values = ()
    require(
        bool(field and equals and values) and len(set(values)) == len(values),
        f"--sweep {text!r} is not OPTION=VALUE,...; write learning_rate=0.01,0.02 or, as factors "
        "of each optimizer's own, learning_rate=x0.5,x1,x2",
    )
    return Sweep(field.strip().replace("-", "_"), values, relative)


def candidates(optimizer: Optimizer, sweeps: Sequence[Sweep]) -> dict[str, Optimizer]:
    """The optimizer with every setting to try, by `field=value,...`; '' for its own setting.

    Args:
        optimizer: with its own settings.
        sweeps: what to try, in all combinations; empty: only its own settings.

    Raises:
        BadInput: the optimizer does not have an option, or its own setting is not a number.

    Example:
        >>> from train.optimizers import MiMuon
        >>> sweeps = parse_sweeps("learning_rate=x0.5,x1 threshold=0.005,0.1")
        >>> list(candidates(MiMuon(learning_rate=0.02, threshold=0.005), sweeps))[1:3]
        ['learning_rate=0.01,threshold=0.1', '']
    """
    tried = {}
    for values in itertools.product(*(_values(optimizer, sweep) for sweep in sweeps)):
        setting = {sweep.field: x for sweep, x in zip(sweeps, values, strict=True)}
        changed = {k: x for k, x in setting.items() if x != getattr(optimizer, k)}
        name = ",".join(f"{field}={x:.4g}" for field, x in changed.items())
        tried[name] = dataclasses.replace(optimizer, **changed)
    return tried


def _values(optimizer: Optimizer, sweep: Sweep) -> list[float]:
    """The values of one option to try."""
    name = type(optimizer).__name__
    fields = {field.name for field in dataclasses.fields(optimizer)}
    require(sweep.field in fields, f"--sweep: {name} has no option {sweep.field!r}")
    own = getattr(optimizer, sweep.field)
    if not isinstance(own, int | float) and sweep.relative:
        raise BadInput(
            f"--sweep: {sweep.field} of {name} is {own}, which has no multiples; give values"
        )
    return [own * value if sweep.relative else value for value in sweep.values]
