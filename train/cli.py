"""The command line: `python -m train PRESET [--optimizer NAME] [options]`."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from train import presets
from train.config import Config
from train.errors import BadInput, Interrupted, TrainingStopped, did_you_mean, one_line, require
from train.loop import run
from train.optimizers import OPTIMIZERS

PROGRAM = "python -m train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: what follows `python -m train`; None: the process's own.

    Returns:
        0: done. 1: training stopped by itself. 2: bad input. 130: Control-C. 143: SIGTERM, as
        schedulers send it before they take the machine. Whatever is not 0 is explained in one line
        on standard error.
    """
    try:
        return _run_preset(list(sys.argv[1:] if arguments is None else arguments))
    except BadInput as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"stopped: {one_line(error)}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"interrupted: {one_line(error)}", file=sys.stderr)
        return 128 + error.signal
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> Config | None:
    """Turns a command line into a configuration; None if it asked for help, now printed.

    Raises:
        BadInput: an unknown preset, optimizer or option, or a value that does not fit.
    """
    if not arguments or arguments[0].startswith("-"):
        asked = arguments[:1] in (["-h"], ["--help"])
        require(asked, f"name a preset first: {PROGRAM} {'|'.join(presets.names())} [options]")
        print(_overview())
        return None
    preset = presets.load(arguments[0])
    name, options = _take_optimizer(arguments[1:])
    tuned: dict[str, Any] = {key: make() for key, make in OPTIMIZERS.items()} | preset.OPTIMIZERS
    default = preset.CONFIG
    if name is not None:
        default = dataclasses.replace(default, optimizer=tuned[name])
    chosen = next(key for key, make in OPTIMIZERS.items() if type(default.optimizer) is make)
    description = (
        f"--optimizer NAME chooses among {', '.join(OPTIMIZERS)}; the optimizer options below are "
        f"those of {chosen}."
    )
    if {"-h", "--help"} & set(options):
        print(preset.__doc__)  # by itself: tyro would join its lines
    return _parse_options(default, options, f"{PROGRAM} {arguments[0]}", description)


def _run_preset(arguments: list[str]) -> int:
    """Parses, trains, and says where the results are."""
    config = parse(arguments)
    if config is None:
        return 0
    result = run(config)
    if not result.trained:
        print(
            f"{result.run_dir} has finished: {result.steps} steps, validation loss "
            f"{result.validation_loss:.4f}. Choose another --run-dir to train again"
        )
    return 0


def _take_optimizer(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes `--optimizer NAME` out of a command line: it decides which options there are."""
    name, rest, tokens = None, [], iter(arguments)
    for token in tokens:
        flag, equals, value = token.partition("=")
        if flag != "--optimizer":
            rest.append(token)
            continue
        name = value if equals else next(tokens, "")
        known = list(OPTIMIZERS)
        require(name[:1] not in ("", "-"), f"--optimizer needs a name: {', '.join(known)}")
        require(
            name in known,
            f"--optimizer {name!r} is unknown{did_you_mean(name, known)}; the optimizers are "
            f"{', '.join(known)}",
        )
    return name, rest


def _parse_options(
    default: Config, options: list[str], program: str, description: str
) -> Config | None:
    """Reads the typed options; tyro's boxes become one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            config, unknown = tyro.cli(
                type(default),
                default=default,
                args=options,
                prog=program,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:
            return None
        raise BadInput(f"{_message(box.getvalue())}; {program} --help lists all") from None
    if unknown:
        raise BadInput(f"{_unknown_option(unknown[0], default)}; {program} --help lists all")
    return config


def _unknown_option(token: str, default: Config) -> str:
    """The message for an option that there is none of: whose it is, or which is near."""
    flag = token.partition("=")[0].replace("_", "-")
    owners = [name for name, make in OPTIMIZERS.items() if flag in _flags(make(), "--optimizer.")]
    if owners:
        return f"option {token} belongs to --optimizer {' or '.join(owners)}"
    known = ["--optimizer", *_flags(default, "--")]
    nested = [option for option in known if option.endswith(f".{flag.lstrip('-')}")]
    hint = f" (did you mean {nested[0]}?)" if nested else did_you_mean(flag, known)
    return f"option {token} is unknown{hint}"


def _message(box: str) -> str:
    """The text of tyro's box: what is between its title and the first rule, or all of it."""
    title, *body = [line.strip("╭╮╰╯│─ ") for line in box.splitlines()] or [""]
    text = " ".join(body[: body.index("")] if "" in body else [title, *body])
    return one_line(text).removeprefix("Error parsing ").rstrip(".")


def _flags(config: Any, prefix: str) -> list[str]:
    """The options that a configuration has, nested ones included."""
    flags = []
    for entry in dataclasses.fields(config):
        if entry.name == "preset":  # chosen by position
            continue
        value, flag = getattr(config, entry.name), prefix + entry.name.replace("_", "-")
        flags += _flags(value, f"{flag}.") if dataclasses.is_dataclass(value) else [flag]
    return flags


def _overview() -> str:
    """What `python -m train --help` prints."""
    lines = [f"usage: {PROGRAM} PRESET [--optimizer NAME] [options]", "", "presets:"]
    for name in presets.names():
        summary = (presets.load(name).__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:20} {summary}")
    return "\n".join([*lines, "", f"{PROGRAM} PRESET --help lists the options of a preset"])
