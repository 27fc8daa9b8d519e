"""The folder of a run: its configuration, whether it can be resumed, and its result."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax

from train import tasks
from train.config import Config
from train.config_json import MAY_MOVE, changes, from_json, to_json
from train.earlier_releases import upgraded
from train.errors import BadInput, MachineError, require
from train.files import machine_failed, write_atomically, writing
from train.integrity import checksum, read_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CHECKOUT = Path(__file__).resolve().parent.parent


class Result(NamedTuple):
    """The result of a finished run; losses are in the task's unit."""

    run_dir: Path
    steps: int
    initial_validation_loss: float  # before the first step
    validation_loss: float  # after the last step
    best_metric: str  # the validation metric that chooses the best checkpoint
    best_value: float
    best_step: int
    trained: bool  # False: the run was finished before this call


class Files(NamedTuple):
    """The paths inside a run directory."""

    config: Path
    environment: Path
    metrics: Path
    tensorboard: Path
    curve: Path
    gates: Path  # bits; their names are in a JSON file beside it
    gates_picture: Path
    result: Path
    checkpoints: Path


def files(directory: Path) -> Files:
    """The paths inside a run directory."""
    return Files(
        config=directory / "config.json",
        environment=directory / "environment.jsonl",
        metrics=directory / "metrics.jsonl",
        tensorboard=directory / "tensorboard",
        curve=directory / "loss.png",
        gates=directory / "gates.bits",
        gates_picture=directory / "gates.png",
        result=directory / "result.json",
        checkpoints=directory / "checkpoints",
    )


def check_same_run(config: Config, data: dict[str, Any]) -> list[str] | None:
    """Returns whether the configured directory already holds this run; writes nothing.

    Args:
        config: the configuration of the run.
        data: what distinguishes its data from other data.

    Returns:
        None: it is missing or empty. Otherwise it holds this run, to be resumed, and the list has
        a line for every change since: more steps, or data in another place.

    Raises:
        BadInput: it holds a run of another configuration or other data (the message lists the
            differences), or it is not a run directory.
    """
    directory, path = config.directory, files(config.directory).config
    if not path.exists():
        empty = not directory.exists() or (directory.is_dir() and not _visible(directory))
        require(
            empty,
            f"{directory} exists and is not a run directory (no config.json); choose another "
            "--run-dir",
        )
        return None
    stored = _stored(path)
    found = changes(stored["config"], to_json(config))
    steps = stored["config"].get("steps")
    longer = isinstance(steps, int) and steps < config.steps
    accepted = MAY_MOVE | {"steps"} if longer else MAY_MOVE
    refused = [
        f"{k} is {old} there and {new} here" for k, (old, new) in found.items() if k not in accepted
    ]
    require(
        not refused,
        f"{directory} holds a run of another configuration: {'; '.join(refused)}. Repeat the old "
        "options to resume it, or choose another --run-dir",
    )
    require(
        stored["data"] == data,
        f"the data changed since {directory} was started: {json.dumps(stored['data'])} there, "
        f"{json.dumps(data)} here. Restore the old data to resume it, or choose another --run-dir",
    )
    moved = {k: text for k, text in found.items() if k in MAY_MOVE}
    said = [
        f"{k} was {old} and is {new}, with the same checksum" for k, (old, new) in moved.items()
    ]
    if longer:
        said.append(
            f"steps was {steps} and is {config.steps}: from here on the learning rate follows the "
            f"schedule of {config.steps} steps"
        )
    return said


def read_config(directory: Path) -> Config:
    """The configuration of the run in a directory, which may have been moved.

    Raises:
        BadInput: not a run directory, or one that another version of this program wrote.
    """
    path = files(directory).config
    require(
        path.exists(),
        f"{directory} is not a run directory (no config.json); create one with python -m train "
        f"PRESET --run-dir {directory}",
    )
    stored = _stored(path)
    tasks.load_all()
    for name, expected in stored["files"].items():
        try:
            require((directory / name).is_file(), f"{directory / name} is missing or not a file")
            intact = checksum((directory / name).read_bytes()) == expected
        except OSError as error:
            raise BadInput(f"{directory / name} cannot be read: {error}") from error
        require(
            intact,
            f"{directory / name} is damaged: its checksum is not that of {path.name}; the training "
            "command writes it again",
        )
    try:
        return from_json(Config, stored["config"]).reopened(directory)
    except BadInput as error:
        raise BadInput(
            f"{path} was written by another version of this program: {error}; "
            f"{files(directory).environment} names its git revision"
        ) from error


def describe(config: Config, data: dict[str, Any], texts: Mapping[str, str]) -> None:
    """Writes config.json, with the checksums of the run's data and of the texts beside it."""
    sealed = {name: checksum(text.encode()) for name, text in texts.items()}
    record = {"config": to_json(config), "data": data, "files": sealed}
    write_atomically(files(config.directory).config, json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Creates the directory if it is missing, and locks it against a second process.

    The lock of a killed process is released.

    Raises:
        BadInput: the directory cannot be created, or another process has the lock.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if machine_failed(error):
            raise MachineError(f"cannot create {directory}: {error.strerror}") from error
        raise BadInput(f"cannot write to --run-dir {directory}: {error}") from error
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with contextlib.ExitStack() as stack:
        with writing(directory / ".lock"):
            file = stack.enter_context((directory / ".lock").open("w", encoding="utf-8"))
            _lock(fcntl, file, directory)
        yield


def record_environment(directory: Path) -> None:
    """Appends one line about this start: time, command, versions, devices, git revision."""
    devices = jax.local_devices()
    record = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "git_revision": _git("describe", "--always", "--abbrev=40", "--dirty"),
    }
    path = files(directory).environment
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def write_texts(directory: Path, texts: Mapping[str, str]) -> None:
    """Writes files by name, also in place of damaged ones."""
    for name, text in texts.items():
        path = directory / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text)


def write_result(result: Result) -> None:
    """Writes the mark of a finished run."""
    record = {k: v for k, v in result._asdict().items() if k not in ("run_dir", "trained")}
    write_atomically(files(result.run_dir).result, json.dumps(record, indent=2) + "\n")


def read_result(directory: Path) -> Result | None:
    """The result of a run, or None if it has not finished or its file is damaged."""
    try:
        stored = read_json(files(directory).result, dict)
        kinds = {"steps": int, "best_step": int, "best_metric": str}
        values = {name: kinds.get(name, float)(x) for name, x in stored.items()}
        return Result(run_dir=directory, trained=False, **values)
    except (OSError, ValueError, TypeError):  # the run goes on from its last checkpoint
        return None


def _stored(path: Path) -> dict[str, Any]:
    """Reads config.json."""
    try:
        stored = read_json(path, dict)
        sealed = dict(stored.get("files", {}))  # earlier releases sealed none
        return {"config": upgraded(stored["config"]), "data": stored["data"], "files": sealed}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} is unreadable ({error!r}), so the run cannot be used; choose another run "
            "directory"
        ) from error


def _visible(directory: Path) -> list[Path]:
    """The files of a directory, except what a kill during its creation leaves behind."""
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


def _lock(fcntl: Any, file: TextIO, directory: Path) -> None:
    """Takes the lock, or raises BadInput if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(
            f"another process is training in {directory}; wait for it, or choose another --run-dir"
        ) from None


def _version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command on the checkout; None without git or outside a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
