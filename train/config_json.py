"""The JSON form of a configuration, and the comparison of two configurations."""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

from train.errors import BadInput, require

# Fields that may change between two calls on one run directory: they do not affect the results. Of
# data the checksum decides, wherever they are.
MAY_CHANGE = frozenset(
    {
        "run_dir",
        "mesh",
        "mesh_axes",
        "processes",
        "checkpoint_every",
        "keep_checkpoints",
        "profile",
        "log",
        "attention",
        "data.cache",
    }
)
MAY_MOVE = frozenset({"data.path", "data.validation", "data.tokenizer"})


def to_json(config: Any) -> Any:
    """Returns a configuration as JSON values: dataclasses become objects with their `type`.

    Paths become strings, tuples become lists, and inf and nan, which JSON lacks, become strings.

    Example:
        >>> from train.optimizers import MiMuon
        >>> to_json(MiMuon(threshold=math.inf))["threshold"]
        'inf'
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
    if isinstance(config, (list, tuple)):
        return [to_json(value) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    return str(config)


def from_json(kind: Any, value: Any, name: str = "config") -> Any:
    """The inverse of `to_json`. Nothing is guessed, and every field must be present.

    With cattrs, hooks for `type`, exact fields and the place in a message would be as long.

    Args:
        kind: the expected type; a dataclass also stands for its subclasses.
        value: JSON values.
        name: name of the value, for messages.

    Raises:
        BadInput: a field is missing, unknown or of another type; the message names it.

    Example:
        >>> from train.optimizers import MiMuon, Optimizer
        >>> from_json(Optimizer, to_json(MiMuon(threshold=math.inf))) == MiMuon(threshold=math.inf)
        True
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, value, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, value, name)
    if origin is Literal:
        choices = ", ".join(map(json.dumps, arguments))
        require(
            value in arguments, f"{name} is {json.dumps(value)} where one of {choices} is expected"
        )
        return value
    if origin is tuple and isinstance(value, list):
        many = len(arguments) == 2 and arguments[1] is ...
        kinds = arguments[:1] * len(value) if many else arguments
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(from_json(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(pairs))
    if kind is types.NoneType and value is None:
        return None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and (value in ("inf", "-inf", "nan") or type(value) in (int, float)):
        return float(str(value))
    if kind in (bool, int, str) and type(value) is kind:
        return value
    expected = getattr(kind, "__name__", kind) if origin is None else kind
    raise BadInput(f"{name} is {json.dumps(value)} where {expected} is expected")


def _dataclass_from_json(kind: Any, value: Any, name: str) -> Any:
    """One object of the named subclass, with exactly its fields."""
    known = {made.__name__: made for made in (kind, *_subclasses(kind))}
    found = value.get("type") if isinstance(value, dict) else value
    require(
        isinstance(value, dict) and found in known,
        f"{name} is {json.dumps(found)} where one of {', '.join(known)} is expected",
    )
    made = known[found]
    hints = typing.get_type_hints(made)
    fields = [field.name for field in dataclasses.fields(made)]
    missing = [field for field in fields if field not in value]
    require(not missing, f"{name} has no {', '.join(missing)}")
    unknown = [field for field in value if field not in {"type", *fields}]
    require(not unknown, f"{name} has {', '.join(unknown)}, which {found} does not have")
    return made(**{f: from_json(hints[f], value[f], f"{name}.{f}") for f in fields})


def _first_that_fits(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """A value of the first type that accepts it."""
    refusals = []
    for kind in kinds:
        try:
            return from_json(kind, value, name)
        except BadInput as error:
            refusals.append(error)
    raise refusals[0]  # None comes last in `int | None`


def _subclasses(kind: type) -> list[type]:
    """All classes below one, at any depth."""
    return [found for below in kind.__subclasses__() for found in (below, *_subclasses(below))]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lists where two configurations in JSON form differ, as `steps is 300 there and 400 here`.

    Fields in `MAY_CHANGE` are ignored.

    Example:
        >>> differences({"steps": 300, "mesh": "data=1"}, {"steps": 400, "mesh": "data=2"})
        ['steps is 300 there and 400 here']
    """
    found = changes(before, now)
    return [f"{name} is {old} there and {new} here" for name, (old, new) in found.items()]


def changes(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> dict[str, tuple[str, str]]:
    """Old and new value of every field that differs, as text; fields in `MAY_CHANGE` are ignored.

    A different type (another optimizer) stands for all fields below it.

    Example:
        >>> changes({"steps": 300, "data": {"path": "a"}}, {"steps": 300, "data": {"path": "b"}})
        {'data.path': ('"a"', '"b"')}
    """
    if before.get("type") != now.get("type"):
        return {prefix.rstrip(".") or "the task": (str(before.get("type")), str(now.get("type")))}
    found: dict[str, tuple[str, str]] = {}
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old == new or prefix + name in MAY_CHANGE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found |= changes(old, new, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(old), json.dumps(new)
    return found
