"""Where the metrics of a run go besides metrics.jsonl: what `--log` names, and nothing else."""

import contextlib
import importlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from train import distributed, run_directory
from train.config import Config
from train.config_json import to_json
from train.errors import one_line, require
from train.files import write_atomically
from train.progress import Reporter

#: The package of every logger, imported only if it is chosen.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Logger(Protocol):
    """Takes the metrics of steps, in order."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""

    def sync(self) -> None:
        """Returns when everything that stays on this machine is on disk."""

    def close(self) -> None:
        """Returns when everything is where it belongs."""


class Wandb:
    """Sends metrics named `train/loss`, `validation/loss` and so on to Weights & Biases.

    A resumed run continues its page there, which ignores the steps that it already has. The
    variables of the library apply: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline.
    """

    def __init__(self, config: Config, directory: Path, say: Callable[[str], None]) -> None:
        """Opens the page of the run in `directory`, whose name there is in the file wandb.id."""
        path = directory / "wandb.id"
        if not path.exists():
            write_atomically(path, secrets.token_hex(8))
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", config.preset),
            name=directory.name,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(directory),
            config=to_json(config),
            # What it prints would go through the progress bar.
            settings=wandb.Settings(silent=True, console="off"),
        )
        say(f"wandb: {f'offline, in {self._run.dir}' if self._run.offline else self._run.url}")

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        self._run.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

    def sync(self) -> None:
        """Sends by itself, in another process."""

    def close(self) -> None:
        """Returns when everything was sent."""
        self._run.finish()


class Loggers:
    """The loggers of a run. One that fails is dropped with a warning, and the run goes on."""

    def __init__(self, config: Config, directory: Path, reporter: Reporter, *, step: int) -> None:
        """Opens the loggers of a run that starts or resumes at `step`; on process 0 only."""
        self._warn, self._open = reporter.warn, {}
        for name in dict.fromkeys(config.log) if distributed.leads() else ():
            with self._dropped_if_it_fails(name):
                if name == "wandb":
                    self._open[name] = Wandb(config, directory, reporter.line)
                else:
                    from train.tensorboard import TensorBoard

                    folder = run_directory.files(directory).tensorboard
                    self._open[name] = TensorBoard(folder, step=step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step to every logger."""
        self._each(lambda logger: logger.write(step, split, metrics))

    def sync(self) -> None:
        """Returns when every logger has everything on disk."""
        self._each(lambda logger: logger.sync())

    def close(self) -> None:
        """Closes all loggers."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        """Calls something with every logger."""
        for name, logger in list(self._open.items()):
            with self._dropped_if_it_fails(name):
                call(logger)

    @contextlib.contextmanager
    def _dropped_if_it_fails(self, name: str) -> Iterator[None]:
        """Warns of an error, and closes the logger that raised it."""
        try:
            yield
        except Exception as error:  # whatever a network can do to a library
            self._warn(
                f"--log {name} failed, and the run continues without it: {one_line(error)}; "
                "metrics.jsonl has every step"
            )
            if (failed := self._open.pop(name, None)) is not None:
                with contextlib.suppress(Exception):
                    failed.close()


def require_installed(names: Sequence[str]) -> None:
    """Raises `BadInput` if the package of a logger is missing."""
    for name in names:
        package = PACKAGES[name]
        require(
            importlib.util.find_spec(package) is not None,
            f"--log {name} needs the package {package}, which is not installed; run `uv pip "
            f"install {package.lower()}`, or leave --log out: metrics.jsonl has every number",
        )
