"""Which settings of every optimizer are tried, such as `learning_rate=x0.3,x1,x3`."""

import dataclasses
from typing import NamedTuple

from train.errors import BadInput, require
from train.optimizers import Optimizer


class Sweep(NamedTuple):
    """One option, and the values or factors to try."""

    field: str  # an option of every optimizer that is compared
    values: tuple[float, ...]
    relative: bool  # whether values are factors of each optimizer's own setting


def parse_sweep(text: str) -> Sweep:
    """Reads a sweep.

    Args:
        text: `OPTION=VALUE,...`; with an `x` before each value, they are factors of every
            optimizer's own setting.

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


def candidates(optimizer: Optimizer, sweep: Sweep | None) -> dict[str, Optimizer]:
    """The optimizer with every setting to try, by `field=value`; '' for its own setting.

    Raises:
        BadInput: the optimizer does not have the option, or its own setting is not a number.

    Example:
        >>> from train.optimizers import Muon
        >>> list(candidates(Muon(learning_rate=0.02), parse_sweep("learning_rate=x0.5,x1")))
        ['learning_rate=0.01', '']
    """
    if sweep is None:
        return {"": optimizer}
    name = type(optimizer).__name__
    fields = {field.name for field in dataclasses.fields(optimizer)}
    require(sweep.field in fields, f"--sweep: {name} has no option {sweep.field!r}")
    own = getattr(optimizer, sweep.field)
    if not isinstance(own, int | float) and sweep.relative:
        raise BadInput(
            f"--sweep: {sweep.field} of {name} is {own}, which has no multiples; give values"
        )
    values = [own * value if sweep.relative else value for value in sweep.values]
    return {
        "" if value == own else f"{sweep.field}={value:.4g}": dataclasses.replace(
            optimizer, **{sweep.field: value}
        )
        for value in values
    }
