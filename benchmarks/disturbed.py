"""A small run as a command: how it ended, and whether it ended like an undisturbed run."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.regression import Regression
from train import cli
from train.metrics import read_metrics
from train.optimizers import MiMuon


def configuration(directory: Path, **fields: Any) -> Regression:
    """A run of eight steps, evaluated and saved after every second one."""
    config = Regression(
        preset="regression",
        run_dir=directory,
        steps=8,
        batch_size=8,
        evaluate_every=2,
        mesh="data=1",
        optimizer=MiMuon(threshold=0.1),
    )
    return dataclasses.replace(config, **fields)


def call(directory: Path, **fields: Any) -> tuple[int, str]:
    """Exit code and errors of the command that trains in a directory."""
    config = configuration(directory, **fields)
    with captured() as text, mock.patch.object(cli, "parse", return_value=config):
        code = cli.main(["regression"])
        return code, without_logs(text())


def without_logs(text: str) -> str:
    """Drops what libraries in C log, such as a CUDA plugin that found no driver."""
    return re.sub(
        r"^(?:[IW]\d{4} |WARNING: All log messages before absl).*\n", "", text, flags=re.M
    )


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """Catches what is written to standard error, also by threads and libraries in C."""
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(file.fileno()), "w") as stream:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()):
                yield lambda: os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")
        finally:
            os.dup2(before, 2)
            os.close(before)


def wrong(code: int, error: str) -> str:
    """What is wrong with how a command ended; empty: nothing."""
    lines = [line for line in error.splitlines() if line and not line.startswith("warning: ")]
    if "Traceback" in error:
        return f"traceback: {lines[-1]}"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    return "" if len(lines) == (code != 0) else f"{len(lines)} lines: {error[:200]}"


def repaired(
    whole: Path, directory: Path, *, log: bool = True, exact: bool = True, **fields: Any
) -> str:
    """Repeats the command after a fault; says what differs from the undisturbed run."""
    code, error = call(directory, **fields)
    if problem := wrong(code, error) or (f"exit code {code}: {error}" if code else ""):
        return f"then {problem}"
    results = [json.loads((d / "result.json").read_text("utf-8")) for d in (whole, directory)]
    if log:
        results = [[r, numbers(d)] for r, d in zip(results, (whole, directory), strict=True)]
    same = results[0] == results[1] if exact else close(*results)
    return "" if same else "then another result"


def numbers(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without measurements of time."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "wall"} for line in lines]


def close(one: Any, other: Any) -> bool:
    """Whether two results agree up to rounding in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other or bool(np.isclose(one, other, rtol=1e-3, atol=1e-5))


def copy(whole: Path, name: str) -> Path:
    """A copy of the undisturbed run, before its result was written."""
    directory = whole.with_name(name)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole, directory)
    (directory / "result.json").unlink()
    return directory
