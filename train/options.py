"""Typed options: a dataclass read from the command line, with every mistake in one line."""

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import shlex
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from train.errors import BadInput, did_you_mean
from train.optimizers import OPTIMIZERS

PROGRAM = "python -m train"

Options = TypeVar("Options")


def parse_options(
    default: Options, options: Sequence[str], *, program: str, description: str
) -> Options | None:
    """Parses the options of a command.

    Args:
        default: a dataclass with default values, possibly nested; its fields are the options.
        options: the words of the command line.
        program: the words before them, for messages.
        description: shown by `--help` and `--help-all`, which are the same here.

    Returns:
        The dataclass with the given values, or None after printing help.

    Raises:
        BadInput: an unknown option, or an invalid value.
    """
    if {"-h", "--help", "--help-all"} & set(options):
        with contextlib.suppress(SystemExit):
            tyro.cli(
                type(default),
                default=default,
                args=["--help"],
                prog=program,
                description=description,
            )
        return None
    config, unknown = _parsed(default, options)
    if unknown:
        wrong = _unknown_option(unknown[0], options, default)
    elif config is None:
        wrong = _wrong_value(options, default)
    else:
        return _resolved(config)
    raise BadInput(f"{wrong}; {program} --help-all lists all")


def path_of(word: str) -> Path:
    """A path from the command line, with `~` expanded.

    Raises:
        BadInput: `~NAME` of a user who does not exist.
    """
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{word}: there is no such user; write the folder in full") from error


def _parsed(default: Options, words: Sequence[str]) -> tuple[Options | None, list[str]]:
    """The options, None if a value does not fit, and the unknown words; prints nothing."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # boxes, also without console_outputs
            return tyro.cli(type(default), default=default, args=words, return_unknown_args=True)
    except SystemExit:
        return None, []


def _resolved(value: Any, name: str = "") -> Any:
    """Options with `~` expanded in every path, and texts read as UTF-8.

    A tokenizer is a path or a name. A path stays as the system decoded it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        changed = {k: new for k, x in fields.items() if (new := _resolved(x, k)) != x}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, Path):
        return path_of(str(value))
    if not isinstance(value, str):
        return value
    return str(path_of(value)) if name == "tokenizer" else _text(value)


def _text(word: str) -> str:
    """A text from the command line as UTF-8, also where the locale has another encoding."""
    try:
        return os.fsencode(word).decode(errors="replace")
    except UnicodeEncodeError:  # not from the command line
        return word


def _wrong_value(words: Sequence[str], default: Any) -> str:
    """The message for the first option whose value does not fit; tyro's is a picture of boxes."""
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    for start, end in itertools.pairwise([*starts, len(words)]):
        part = words[start:end]
        try:
            fits = _parsed(default, part)[0] is not None
        except BadInput:  # it fits, but not with the defaults of the other options
            fits = True
        if not fits:
            flag, equals, value = part[0].partition("=")
            given = value if equals else " ".join(part[1:])
            path = flag.removeprefix("--").replace("-", "_").split(".")
            owner = functools.reduce(getattr, path[:-1], default)
            kind = typing.get_type_hints(type(owner))[path[-1]]
            refusal = _refusal(owner, path[-1], kind, [value] if equals else part[1:])
            if refusal is not None:
                return f"{'.'.join(path[:-1])}: {refusal}"
            *others, last = _expected(kind)
            choices = f"{', '.join(others)} or {last}" if others else last
            return f"{flag} needs {choices}" + (f", not {given}" if given else "")
    return f"the options {shlex.join(words)} do not fit together"


def _refusal(owner: Any, name: str, kind: Any, words: Sequence[str]) -> ValueError | None:
    """The error of a dataclass whose field `name` gets a value of its type, if it has one."""
    one = dataclasses.make_dataclass("One", [("value", kind)])
    found, _ = _parsed(one(getattr(owner, name)), ["--value", *words])
    if found is not None:
        try:
            dataclasses.replace(owner, **{name: found.value})
        except ValueError as error:
            return error
    return None


def _expected(kind: Any) -> list[str]:
    """What values of a type are called; of a list, one member."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return list(map(str, members))
    if members:
        members = members[:1] if origin is tuple else members
        return [name for member in members for name in _expected(member)]
    names = {int: "a whole number", float: "a number", Path: "a path", type(None): "None"}
    return [names.get(kind, "a text")]


def _unknown_option(token: str, words: Sequence[str], default: Any) -> str:
    """The message for an unknown option: the optimizer that has it, or a similar option."""
    flag = token.partition("=")[0].replace("_", "-")
    known = _flags(default, "--")
    if not token.startswith("-"):
        before = " ".join(words).replace("=", " ").partition(f" {token}")[0].split()[-1:]
        if before and known.get(before[0].replace("_", "-")) is bool:
            return f"{before[0]} {token}: write {before[0]}, or {_no(before[0])}, without a value"
        return f"option {token} is unknown: options start with --"
    names = list(known)
    if hasattr(default, "optimizer"):
        makes = OPTIMIZERS.items()
        owners = [name for name, make in makes if flag in _flags(make(), "--optimizer.")]
        if owners:
            return f"option {token} belongs to --optimizer {' or '.join(owners)}"
        names += ["--optimizer", "--config"]
    nested = [option for option in names if option.endswith(f".{flag.lstrip('-')}")]
    hint = f" (did you mean {nested[0]}?)" if nested else did_you_mean(flag, names)
    return f"option {token} is unknown{hint}"


def _no(flag: str) -> str:
    """The option that switches another one off: --a.no-b for --a.b."""
    group, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{name}"


def _flags(config: Any, prefix: str) -> dict[str, Any]:
    """The options of a configuration, including nested ones, with their types."""
    flags, kinds = {}, typing.get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        if entry.name == "preset":  # chosen by position
            continue
        value, flag = getattr(config, entry.name), prefix + entry.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags |= _flags(value, f"{flag}.")
        else:
            flags[flag] = kinds[entry.name]
    return flags
