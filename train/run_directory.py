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

from models.qwen3 import RotaryScaling
from train import tasks
from train.config import Config, differences, from_json, to_json
from train.errors import BadInput, require
from train.files import write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CHECKOUT = Path(__file__).resolve().parent.parent

_RENAMED = {"skipped_at_most": "max_skipped_steps"}  # fields of config.json in earlier releases
# Fields that earlier releases did not have, by the type of the model.
_ADDED = {"Qwen3Config": {"attention_bias": False, "rope_scaling": to_json(RotaryScaling())}}


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


def check_same_run(config: Config, data: dict[str, Any]) -> bool:
    """Returns whether the configured directory already holds this run; writes nothing.

    Args:
        config: the configuration of the run.
        data: what distinguishes its data from other data.

    Returns:
        True: it holds a run of this configuration, to be resumed. False: it is missing or empty.

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
        return False
    stored = _stored(path)
    found = differences(stored["config"], to_json(config))
    require(
        not found,
        f"{directory} holds a run of another configuration: {'; '.join(found)}. Repeat the old "
        "options to resume it, or choose another --run-dir",
    )
    require(
        stored["data"] == data,
        f"the data changed since {directory} was started: {json.dumps(stored['data'])} there, "
        f"{json.dumps(data)} here. Restore the old data to resume it, or choose another --run-dir",
    )
    return True


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
    stored = _stored(path)["config"]
    tasks.load_all()
    try:
        return from_json(Config, stored).reopened(directory)
    except BadInput as error:
        raise BadInput(
            f"{path} was written by another version of this program: {error}; "
            f"{files(directory).environment} names its git revision"
        ) from error


def create(config: Config, data: dict[str, Any]) -> None:
    """Creates the configured directory and writes config.json."""
    try:
        config.directory.mkdir(parents=True, exist_ok=True)
        record = {"config": to_json(config), "data": data}
        write_atomically(files(config.directory).config, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise BadInput(f"cannot write to --run-dir {config.directory}: {error}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Locks the directory against a second process; the lock of a killed process is released."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (directory / ".lock").open("w") as file:
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
    with files(directory).environment.open("a") as file:
        file.write(json.dumps(record) + "\n")


def write_texts(directory: Path, texts: Mapping[str, str]) -> None:
    """Writes missing files by name; a resumed run keeps those that it has."""
    for name, text in texts.items():
        if not (directory / name).exists():
            write_atomically(directory / name, text)


def write_result(result: Result) -> None:
    """Writes the mark of a finished run."""
    record = {k: v for k, v in result._asdict().items() if k not in ("run_dir", "trained")}
    write_atomically(files(result.run_dir).result, json.dumps(record, indent=2) + "\n")


def read_result(directory: Path) -> Result | None:
    """The result of a run, or None if it has not finished."""
    path = files(directory).result
    if not path.exists():
        return None
    return Result(run_dir=directory, trained=False, **json.loads(path.read_text()))


def _stored(path: Path) -> dict[str, Any]:
    """Reads config.json."""
    try:
        stored = json.loads(path.read_text())
        fields = {_RENAMED.get(name, name): value for name, value in stored["config"].items()}
        model = fields.get("model")
        if isinstance(model, dict):
            fields["model"] = {**_ADDED.get(str(model.get("type")), {}), **model}
        return {"config": fields, "data": stored["data"]}
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
