"""`python -m train compare EXPERIMENT`: runs an experiment and writes its report."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from train import experiments
from train.errors import one_line, require
from train.experiments.comparison import Comparison
from train.options import PROGRAM, parse_options
from train.report import write_report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Trains the missing runs of an experiment and reports all of them."""

    scale: Literal["small", "paper", "gpu", "track3"] = "small"
    """small: under an hour on two idle cores; gpu: for one GPU with 80 GB, where an experiment has
    it; paper: the sizes of the papers, which need larger hardware; track3: the benchmark's own
    setting, of speedrun instead of paper."""

    optimizers: tuple[str, ...] | None = None
    """Names of optimizers to compare, from those that the experiment has. None: its choice."""

    seeds: int = 3
    """Number of seeds, counted from 0."""

    sweep: str | None = None
    """Settings to try with every optimizer: learning_rate=x0.3,x1,x3 (factors of its own rate) or
    threshold=0.005,0.01 (values), several options separated by spaces for all combinations. none:
    only its own settings. None: the experiment's choice."""

    data: Path | None = None
    """File or folder to read instead of the experiment's data, like --data.path of a preset."""

    validation: Path | None = None
    """Held-out file of a language model, like --data.validation of a preset."""

    run_dir: Path | None = None
    """Folder for the runs and the report (None: runs/EXPERIMENT/SCALE). The same command continues
    with what is there, and keeps finished runs."""

    def __post_init__(self) -> None:
        require(self.seeds >= 1, f"seeds={self.seeds} must be at least 1")


def compare(arguments: Sequence[str]) -> None:
    """Runs an experiment: optimizers under one budget, tables, curves and an HTML report.

    The experiments are the files in train/experiments; the same command continues an interrupted
    one.
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
    """Trains the missing runs of an experiment and writes its report.

    Args:
        name: name of the experiment.
        options: its scale, seeds, settings, data and folder.

    Returns:
        The path of the HTML report.

    Raises:
        BadInput: an unknown experiment, or a folder that holds something else.
    """
    scales = experiments.load(name).SCALES
    require(
        options.scale in scales,
        f"--scale {options.scale} is not a scale of {name}; choose from {', '.join(scales)}",
    )
    experiment: experiments.Experiment = scales[options.scale]
    if isinstance(experiment, Comparison):
        experiment = experiment.with_optimizers(options.optimizers)
    else:
        require(options.optimizers is None, f"--optimizers: {name} compares a fixed list")
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
    """The command line, as a person would type it."""
    program = "python -m train" if Path(argv[0]).parent.name == "train" else argv[0]
    return shlex.join([*program.split(), *argv[1:]])
