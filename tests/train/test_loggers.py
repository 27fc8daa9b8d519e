"""`--log`: off by default, imported only then, and no reason for a run to end."""

import importlib.machinery
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import disturbed
from train import cli, loggers
from train.config_json import to_json
from train.loggers import Loggers
from train.metrics import read_metrics

pytestmark = pytest.mark.standard_promotion


class Reporter:
    """Keeps what is said."""

    def __init__(self):
        self.lines, self.warnings = [], []
        self.line, self.warn = self.lines.append, self.warnings.append


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The part of wandb that is used: what it was given, and `fail` to raise from a call."""
    seen = SimpleNamespace(init=[], log=[], finished=0, fail="")

    def called(name: str) -> None:
        if seen.fail == name:
            raise ConnectionError("no route\nto host")

    def init(**options: Any) -> Any:
        called("init")
        seen.init.append(options)
        return SimpleNamespace(offline=False, url="https://example.org/run", log=log, finish=finish)

    def log(values: dict[str, float], step: int) -> None:
        called("log")
        seen.log.append((step, values))

    def finish() -> None:
        seen.finished += 1
        called("finish")

    module = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    vars(module).update(init=init, Settings=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return seen


def log_one_step(directory: Path, log: tuple[str, ...]) -> Reporter:
    reporter = Reporter()
    directory.mkdir(exist_ok=True)
    opened = Loggers(disturbed.configuration(directory, log=log), directory, reporter, step=0)
    opened.write(1, "train", {"loss": 2.0})
    opened.sync()
    opened.close()
    return reporter


def test_the_page_of_a_run_is_that_of_its_directory(wandb: SimpleNamespace, tmp_path: Path):
    for _ in range(2):  # started, and resumed
        assert log_one_step(tmp_path / "run", ("wandb",)).lines == [
            "wandb: https://example.org/run"
        ]
    log_one_step(tmp_path / "other", ("wandb",))
    first, resumed, other = wandb.init
    assert first["id"] == resumed["id"] != other["id"]
    assert (first["name"], first["project"], first["resume"]) == ("run", "regression", "allow")
    config = disturbed.configuration(tmp_path / "run", log=("wandb",))
    assert first["config"] == to_json(config)
    assert wandb.log == [(1, {"train/loss": 2.0})] * 3
    assert wandb.finished == 3


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_logger_that_fails_is_dropped_and_the_others_go_on(
    call: str, wandb: SimpleNamespace, tmp_path: Path
):
    wandb.fail = call
    warnings = log_one_step(tmp_path / "run", ("wandb", "tensorboard")).warnings
    (warning,) = warnings
    assert warning.startswith(
        "--log wandb failed, and the run continues without it: no route to host"
    )
    assert wandb.log == ([(1, {"train/loss": 2.0})] if call == "finish" else [])
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


@pytest.mark.slow
def test_a_run_with_loggers_has_their_points_and_ends_as_without(
    wandb: SimpleNamespace, tmp_path: Path
):
    assert disturbed.call(tmp_path / "plain") == (0, "")
    assert {path.name for path in (tmp_path / "plain").iterdir()} & {
        "tensorboard",
        "wandb.id",
    } == set()
    assert disturbed.call(tmp_path / "run", log=("wandb", "tensorboard")) == (0, "")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(wandb.log) == len(lines)
    for (step, values), line in zip(wandb.log, lines, strict=True):
        assert (step, values[f"{line['split']}/loss"]) == (line["step"], line["loss"])
    assert disturbed.repaired(tmp_path / "plain", tmp_path / "run", log=False) == ""


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardx")])
def test_a_missing_package_is_one_line_before_anything_is_written(
    name: str, package: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lm", "--log", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --log {name} needs the package ")
    assert f"uv pip install {package}" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_logger_is_imported_unless_it_is_chosen():
    code = "import sys, train.loop, train.cli; print({'tensorboardX', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
