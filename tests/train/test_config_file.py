"""`--config FILE`: a stored configuration as the defaults of a command line."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from train import cli, presets, run_directory
from train.config_json import to_json
from train.earlier_releases import upgraded
from train.optimizers import MiMuon, Muon

LM = presets.load("lm").CONFIG


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The config.json of a run with other options than the preset's."""
    config = cli.parse(
        ["lm", "--optimizer", "muon", "--optimizer.momentum", "0.8", "--run-dir", str(tmp_path)]
    )
    assert config is not None
    run_directory.describe(config, {}, {})
    return run_directory.files(tmp_path).config


def test_a_stored_configuration_is_the_same_run(stored: Path, tmp_path: Path):
    config = cli.parse(["lm", "--config", str(stored)])
    assert config == run_directory.read_config(tmp_path)
    assert cli.parse(["lm", f"--config={stored}", "--optimizer", "muon"]) == config


def test_options_override_the_file(stored: Path):
    config = cli.parse(["lm", "--config", str(stored), "--steps", "7"])
    assert config is not None
    assert config.steps == 7
    assert config.optimizer == dataclasses.replace(
        presets.load("lm").OPTIMIZERS["muon"], momentum=0.8
    )
    other = cli.parse(["lm", "--config", str(stored), "--optimizer", "mimuon"])
    assert other is not None
    assert other.optimizer == presets.load("lm").OPTIMIZERS["mimuon"]


def test_a_file_may_leave_out_fields(tmp_path: Path):
    path = tmp_path / "some.json"
    path.write_text('{"steps": 9, "data": {"sequence_length": 64}, "optimizer": {"momentum": 0.5}}')
    config = cli.parse(["lm", "--config", str(path)])
    data = dataclasses.replace(LM.data, sequence_length=64)
    optimizer = dataclasses.replace(LM.optimizer, momentum=0.5)
    assert config == dataclasses.replace(LM, steps=9, data=data, optimizer=optimizer)
    assert isinstance(LM.optimizer, MiMuon)
    path.write_text('{"optimizer": {"type": "Muon", "momentum": 0.5}}')
    config = cli.parse(["lm", "--config", str(path)])
    assert config is not None
    assert config.optimizer == dataclasses.replace(
        presets.load("lm").OPTIMIZERS["muon"], momentum=0.5
    )
    assert type(config.optimizer) is Muon


def test_a_configuration_of_an_earlier_release_is_completed(stored: Path):
    record = json.loads(stored.read_text())
    del record["config"]["precision"], record["config"]["optimizer"]["lookahead"]
    stored.write_text(json.dumps(record))
    config = cli.parse(["lm", "--config", str(stored)])
    assert config is not None
    assert config.optimizer.lookahead == 0
    fields = to_json(presets.load("classify").CONFIG)
    del fields["data"]["label_noise"]
    assert upgraded(fields) == to_json(presets.load("classify").CONFIG)


MISTAKES: dict[str, tuple[Any, str]] = {
    "an unknown field": ({"stepz": 3}, "config has stepz, which LanguageModel does not have"),
    "a wrong type": ({"steps": "many"}, 'config.steps is "many" where int is expected'),
    "below": ({"optimizer": {"momentum": "1"}}, 'config.optimizer.momentum is "1" where float'),
    "a wrong value": ({"steps": 0}, "steps=0 must be at least 1"),
    "a wrong model": ({"model": {"head_dim": 3}}, "head_dim=3 is odd"),
    "another task": (to_json(presets.load("detect").CONFIG), 'config is "Detection" where one of'),
    "no object": ([], "holds [], not a JSON dict"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_one_line_with_the_file_and_the_field(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content, said = MISTAKES[mistake]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    assert cli.main(["lm", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config {path}")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config", "--config needs a file"),
        ("--config gone.json", "--config gone.json cannot be read: "),
        ("--config .", "cannot be read"),
        ("--konfig x", "(did you mean --config?)"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["lm", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_foreign_package_models_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    foreign = tmp_path / "models" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("raise SystemExit('foreign')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "models")
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=r"needs the package `models` beside it, and .*models"):
        _ = train.Config
    # `python -m train` puts the checkout before the working directory.
    monkeypatch.syspath_prepend(Path(train.__file__).parent.parent)
    assert train.Config is type(LM).__mro__[1]
