"""Typed options: a dataclass read from the command line, with every mistake in one line."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from train.errors import BadInput, did_you_mean, one_line
from train.optimizers import OPTIMIZERS

PROGRAM = "python -m train"

Options = TypeVar("Options")


def parse_options(
    default: Options, options: Sequence[str], *, program: str, description: str
) -> Options | None:
    """Parses the options of a command; the boxes of tyro become one line.

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
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            config, unknown = tyro.cli(
                type(default),
                default=default,
                args=["--help" if word == "--help-all" else word for word in options],
                prog=program,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:
            return None
        raise BadInput(f"{_message(box.getvalue())}; {program} --help-all lists all") from None
    if unknown:
        raise BadInput(f"{_unknown_option(unknown[0], default)}; {program} --help-all lists all")
    return _resolved(config)


def path_of(word: str) -> Path:
    """A path from the command line, with `~` expanded.

    Raises:
        BadInput: `~NAME` of a user who does not exist.
    """
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{word}: there is no such user; write the folder in full") from error


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


def _unknown_option(token: str, default: Any) -> str:
    """The message for an unknown option: the optimizer that has it, or a similar option."""
    flag = token.partition("=")[0].replace("_", "-")
    known = _flags(default, "--")
    if hasattr(default, "optimizer"):
        makes = OPTIMIZERS.items()
        owners = [name for name, make in makes if flag in _flags(make(), "--optimizer.")]
        if owners:
            return f"option {token} belongs to --optimizer {' or '.join(owners)}"
        known += ["--optimizer", "--config"]
    nested = [option for option in known if option.endswith(f".{flag.lstrip('-')}")]
    hint = f" (did you mean {nested[0]}?)" if nested else did_you_mean(flag, known)
    return f"option {token} is unknown{hint}"


def _message(box: str) -> str:
    """The text of tyro's box: from its title to the first rule, or all of it."""
    title, *body = [line.strip("╭╮╰╯│─ ") for line in box.splitlines()] or [""]
    text = " ".join(body[: body.index("")] if "" in body else [title, *body])
    return one_line(text).removeprefix("Error parsing ").rstrip(".")


def _flags(config: Any, prefix: str) -> list[str]:
    """The options of a configuration, including nested ones."""
    flags = []
    for entry in dataclasses.fields(config):
        if entry.name == "preset":  # chosen by position
            continue
        value, flag = getattr(config, entry.name), prefix + entry.name.replace("_", "-")
        flags += _flags(value, f"{flag}.") if dataclasses.is_dataclass(value) else [flag]
    return flags
