"""The command line: `python -m train PRESET [options]`, `python -m train COMMAND RUN_DIR`."""

import contextlib
import dataclasses
import io
import os
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from platform import python_version
from typing import Any

from jax.errors import JaxRuntimeError

from train import distributed, experiments, presets
from train.commands import COMMANDS, OPTIONS
from train.config import Config
from train.config_file import configured
from train.errors import (
    BadInput,
    Interrupted,
    MachineError,
    TrainingStopped,
    did_you_mean,
    one_line,
    require,
)
from train.loop import run
from train.optimizers import OPTIMIZERS
from train.options import PROGRAM, parse_options, path_of
from train.short_help import option_lines, short_help

#: What a command is followed by.
OPERANDS = {
    "evaluate": "RUN_DIR",
    "sample": "RUN_DIR",
    "predict": "RUN_DIR IMAGE_OR_FOLDER",
    "export": "RUN_DIR FOLDER",
    "compare": "EXPERIMENT",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: the words after `python -m train`; None takes them from `sys.argv`.

    Returns:
        0: done. 1: training stopped by itself, or the machine failed. 2: bad input. 129: SIGHUP, of
        a lost terminal. 130: Control-C. 141: nobody reads the output. 143: SIGTERM, which
        schedulers send before they reclaim a machine. Every code except 0 is explained in one line
        on standard error.
    """
    _accept_all_characters()
    try:
        code, message = _run(list(sys.argv[1:] if arguments is None else arguments)), ""
        sys.stdout.flush()
    except BadInput as error:
        code, message = 2, f"error: {error}"
    except TrainingStopped as error:
        code, message = 1, f"stopped: {error}"
    except BrokenPipeError:  # of `--help | head` too, which has nothing to continue
        code, message = 1, "stopped: the output was closed"
    except (MachineError, OSError) as error:
        code = 1
        message = f"stopped: {error}; once that is repaired, the same command continues"
    except JaxRuntimeError as error:
        if not distributed.joined():
            raise
        _close_output(f"stopped: {distributed.lost(error)}")
        os._exit(1)  # the usual exit would wait for the lost process
    except Interrupted as error:
        code, message = 128 + error.signal, f"interrupted: {error}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted: the same command resumes from the last checkpoint"
    _close_output(one_line(message))
    return code


def parse(arguments: Sequence[str]) -> Config | None:
    """Turns a command line into a configuration, or prints help or versions and returns None.

    Raises:
        BadInput: an unknown preset, optimizer or option, or an invalid value.
    """
    if arguments[:1] == ["--version"]:
        print(
            f"mimuon-jax {version('mimuon-jax')}, jax {version('jax')}, Python {python_version()}"
        )
        return None
    if not arguments or arguments[0].startswith("-"):
        asked = arguments[:1] in (["-h"], ["--help"])
        require(asked, f"name a preset first: {PROGRAM} {'|'.join(presets.names())} [options]")
        print(_overview())
        return None
    is_experiment = arguments[0] not in presets.names() and arguments[0] in experiments.names()
    require(not is_experiment, f"{arguments[0]} is an experiment: {PROGRAM} compare {arguments[0]}")
    preset = presets.load(arguments[0])
    name, options = _take_optimizer(arguments[1:])
    path, options = _take("--config", "a file, such as the config.json of a run", options)
    tuned: dict[str, Any] = {key: make() for key, make in OPTIMIZERS.items()} | preset.OPTIMIZERS
    default = preset.CONFIG if path is None else configured(path_of(path), preset.CONFIG, tuned)
    if name is not None and type(default.optimizer) is not OPTIMIZERS[name]:
        default = dataclasses.replace(default, optimizer=tuned[name])
    chosen = next(key for key, make in OPTIMIZERS.items() if type(default.optimizer) is make)
    description = (
        f"--optimizer NAME chooses among {', '.join(OPTIMIZERS)}; the optimizer options below are "
        f"those of {chosen}. --config FILE takes defaults from a file, such as the config.json of "
        "a run."
    )
    program = f"{PROGRAM} {arguments[0]}"
    if {"-h", "--help", "--help-all"} & set(options):
        print(preset.__doc__)  # by itself: tyro would join its lines
    if {"-h", "--help"} & set(options):
        print(f"{textwrap.fill(description, 80)}\n\n{short_help(default, program)}")
        return None
    config = parse_options(default, options, program=program, description=description)
    return None if config is None else config.completed(default)


def _run(arguments: list[str]) -> int:
    """Runs a command, or trains a preset and reports where the results are."""
    if arguments and arguments[0] in COMMANDS:
        if arguments[1:2] in (["-h"], ["--help"]):
            print(_command_help(arguments[0]))
        else:
            COMMANDS[arguments[0]](arguments[1:])
        return 0
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


def _accept_all_characters() -> None:
    """Lets output that is not UTF-8 show other characters escaped, where it would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_output(message: str) -> None:
    """Prints the last line, and drops what a full disk or a closed pipe does not take.

    Python would try again when it exits, and fail with a traceback.
    """
    with contextlib.suppress(OSError):
        if message:
            print(message, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _take_optimizer(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes `--optimizer NAME` out of a command line, since it decides which options exist."""
    known = list(OPTIMIZERS)
    name, others = _take("--optimizer", f"a name: {', '.join(known)}", arguments)
    require(
        name is None or name in known,
        f"--optimizer {name!r} is unknown{did_you_mean(name or '', known)}; the optimizers are "
        f"{', '.join(known)}",
    )
    return name, others


def _take(flag: str, needed: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes a flag with its value out of a command line; the last one counts."""
    value, others, tokens = None, [], iter(arguments)
    for token in tokens:
        found, equals, after = token.partition("=")
        if found != flag:
            others.append(token)
            continue
        value = after if equals else next(tokens, "")
        require(value[:1] not in ("", "-"), f"{flag} needs {needed}")
    return value, others


def _overview() -> str:
    """What `python -m train --help` prints."""
    lines = [
        f"usage: {PROGRAM} PRESET [--optimizer NAME] [--config FILE] [options]",
        *(f"       {PROGRAM} {name} {words} [options]" for name, words in OPERANDS.items()),
    ]
    modules = {name: presets.load(name) for name in presets.names()}
    for title, known in (("presets", modules), ("commands", COMMANDS)):
        lines += ["", f"{title}:"]
        lines += [f"  {name:20} {_summary(about)}" for name, about in known.items()]
    lines += [
        "",
        f"{PROGRAM} PRESET --help shows the options of a preset, --help-all all about them",
    ]
    return "\n".join(lines)


def _command_help(name: str) -> str:
    """What `python -m train COMMAND --help` prints."""
    usage = f"{PROGRAM} {name} {OPERANDS[name]}"
    about = one_line(COMMANDS[name].__doc__)
    lines = [f"usage: {usage} [options]", "", textwrap.fill(about, 80), "", "options:"]
    lines += [*option_lines(OPTIONS[name]), "", f"{usage} --help says more"]
    if name == "compare":
        lines += ["", "experiments:"]
        lines += [f"  {e:20} {_summary(experiments.load(e))}" for e in experiments.names()]
    return "\n".join(lines)


def _summary(about: Any) -> str:
    """The first line of a docstring."""
    return (about.__doc__ or "").strip().splitlines()[0]
