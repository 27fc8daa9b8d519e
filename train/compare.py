"""`python -m train compare EXPERIMENT`: runs an experiment and writes its report."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from train import experiments
from train.errors import one_line, require
from train.options import PROGRAM, parse_options
from train.report import write_report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Runs what is missing of an experiment, and reports all of it."""

    scale: Literal["small", "paper"] = "small"
    """small: within an hour on two quiet cores; paper: the papers' sizes, for those with the
    hardware."""

    seeds: int = 3
    """Number of seeds, from 0 on."""

    sweep: str | None = None
    """Settings that every optimizer is tried with, as learning_rate=x0.3,x1,x3 (factors of its own)
    or threshold=0.005,0.01 (values); none: no other than its own. None: the experiment's choice."""

    data: Path | None = None
    """File or folder that the task reads in place of its own data, as --data.path of a preset."""

    validation: Path | None = None
    """Held-out file of a language model, as --data.validation of a preset."""

    run_dir: Path | None = None
    """Folder of the runs and of the report (None: runs/EXPERIMENT/SCALE). The same command goes on
    with what is there, and keeps runs that ended."""

    def __post_init__(self) -> None:
        require(self.seeds >= 1, f"seeds={self.seeds} must be at least 1")


def compare(arguments: Sequence[str]) -> None:
    """Runs an experiment: optimizers under one budget, tables, curves and an HTML report.

    The experiments are files in train/experiments; the same command goes on where it was ended.
    """
    known = experiments.names()
    given = bool(arguments) and not arguments[0].startswith("-")
    require(given, f"name an experiment first: {PROGRAM} compare {'|'.join(known)} [options]")
    experiments.load(arguments[0])
    options = parse_options(
        Compare(),
        arguments[1:],
        program=f"{PROGRAM} compare {arguments[0]}",
        description=one_line(compare.__doc__),
    )
    if options is not None:
        print(run_experiment(arguments[0], options))


def run_experiment(name: str, options: Compare) -> Path:
    """Runs what is missing of an experiment and writes its report.

    Args:
        name: of the experiment.
        options: how much of it.

    Returns:
        The path of the HTML report.

    Raises:
        BadInput: an unknown experiment, or a folder with something else in it.
    """
    experiment: experiments.Experiment = experiments.load(name).SCALES[options.scale]
    given = {"path": options.data, "validation": options.validation}
    given = {name: value for name, value in given.items() if value is not None}
    experiment = experiment.with_data(**given) if given else experiment
    directory = options.run_dir or Path("runs") / name / options.scale
    directory.mkdir(parents=True, exist_ok=True)
    report = experiment.run(
        directory,
        seeds=range(options.seeds),
        sweep=options.sweep,
        say=lambda line: print(line, flush=True),
    )
    command = ("command", _command(sys.argv))
    return write_report(report._replace(conditions=[command, *report.conditions]), directory)


def _command(argv: Sequence[str]) -> str:
    """The command line that was used, as a person would type it."""
    program = "python -m train" if Path(argv[0]).parent.name == "train" else argv[0]
    return shlex.join([*program.split(), *argv[1:]])
