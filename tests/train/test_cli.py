"""The command line: every mistake is one line and exit code 2, and writes nothing."""

import dataclasses
import gzip
import lzma
import math
import re
import signal
from pathlib import Path

import pytest

from train import cli, presets
from train.errors import Interrupted
from train.optimizers import OPTIMIZERS, AdamW, MiMuon, Muon


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data of every bad kind in it."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "short.txt").write_text("too short\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "zero.txt").write_bytes(b"text\0text")
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    (tmp_path / "broken.txt.xz").write_bytes(b"broken")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
    (tmp_path / "cut.xz").write_bytes(lzma.compress(b"text " * 1000)[:-20])
    (tmp_path / "no_text").mkdir()
    (tmp_path / "no_text" / "picture.png").write_bytes(b"png")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("important")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTAKES = {
    "": "name a preset first: python -m train ",
    "--optimizer muon": "name a preset first",
    "lmm": "preset 'lmm' is unknown (did you mean lm?)",
    "nonsense": "preset 'nonsense' is unknown; the presets are ",
    "lm more": "option more is unknown",
    "lm --stepz 3": "option --stepz is unknown (did you mean --steps?)",
    "lm --batch_sise=3": "option --batch_sise=3 is unknown (did you mean --batch-size?)",
    "lm --optimizer.treshold 3": "(did you mean --optimizer.threshold?)",
    "lm --learning-rate 3": "(did you mean --optimizer.learning-rate?)",
    "lm -steps 3": "option -steps is unknown (did you mean --steps?)",
    "lm --steps 3 4": "option 4 is unknown: options start with --",
    "lm --profile yes": "--profile yes: write --profile, or --no-profile, without a value",
    "lm --optimizer.nesterov=no": "or --optimizer.no-nesterov, without a value",
    "lm --checkpoint-every x": "--checkpoint-every needs a whole number or None, not x",
    "lm --optimizer.relative-to x": "needs peak, average, noise or None, not x",
    "lm --log": "--log needs tensorboard or wandb; ",
    "lm --log wandbb": "--log needs tensorboard or wandb, not wandbb",
    "lm --preset other": "option --preset is unknown",
    "lm --optimizer": "--optimizer needs a name: mimuon, muon, adamw",
    "lm --optimizer=": "--optimizer needs a name",
    "lm --optimizer mimun": "--optimizer 'mimun' is unknown (did you mean mimuon?)",
    "lm --optimizer muon --optimizer.threshold 1": "belongs to --optimizer mimuon",
    "table2": "table2 is an experiment: python -m train compare table2",
    "lm --steps": "--steps needs a whole number; ",
    "lm --steps many": "--steps needs a whole number, not many; ",
    "lm --steps 0": "steps=0 must be at least 1",
    "lm --steps -3": "steps=-3 must be at least 1",
    "lm --batch-size 0": "batch_size=0 must be at least 1",
    "lm --evaluate-every 0": "evaluate_every=0 must be at least 1",
    "lm --checkpoint-every 70": "checkpoint_every=70 must be a multiple of evaluate_every=50",
    "lm --keep-checkpoints 0": "keep_checkpoints=0 must be at least 1",
    "lm --seed -1": "seed=-1 must be in",
    "lm --optimizer.threshold -1": "optimizer.threshold=-1.0 must be a number >= 0",
    "lm --optimizer.threshold nan": "optimizer.threshold=nan must be a number >= 0",
    "lm --optimizer.learning-rate 0": "optimizer.learning_rate=0.0 must be a finite number > 0",
    "lm --optimizer.learning-rate inf": "optimizer.learning_rate=inf must be a finite number > 0",
    "lm --optimizer.auxiliary-learning-rate nan": "auxiliary_learning_rate=nan must be a finite",
    "lm --optimizer.momentum 1": "optimizer.momentum=1.0 must be at least 0 and less than 1",
    "lm --optimizer.weight-decay -1": "optimizer.weight_decay=-1.0 must be a finite number >= 0",
    "lm --optimizer.final-fraction 2": "optimizer.final_fraction=2.0 must lie between 0 and 1",
    "lm --optimizer.clip-norm nan": "optimizer.clip_norm=nan must be a number > 0",
    "lm --optimizer.warmup-steps -1": "optimizer.warmup_steps=-1 must be at least 0",
    "lm --optimizer.warmup-steps 200": "must be less than steps=200",
    "lm --optimizer.measure norm": "needs gap, rms, spectral or frobenius, not norm",
    "lm --optimizer adamw --optimizer.b2 1": "optimizer.b2=1.0 must be at least 0 and less",
    "lm --optimizer adamw --optimizer.eps 0": "optimizer.eps=0.0 must be a finite number > 0",
    "lm --model.head-dim 3": "model: head_dim=3 is odd",
    "lm --model.hidden-size -3": "model: hidden_size=-3 is not a size",
    "lm --model.vocab-size 300": "model.vocab_size=300 must be 256: tokens are bytes",
    "lm --sample.length 0": "sample.length=0 must be at least 1",
    "lm --sample.prompt=": "sample.prompt is empty",
    "lm --sample.temperature -1": "sample.temperature=-1.0 must be a finite number >= 0",
    "lm --data.path missing.txt": "data.path=missing.txt does not exist",
    "lm --data.path empty.txt": "empty.txt is empty",
    "lm --data.path blank.txt": "blank.txt is empty",
    "lm --data.path binary.txt": "binary.txt is not text: byte 0x80 at offset 128",
    "lm --data.path zero.txt": "zero.txt is not text: a zero byte at offset 4",
    "lm --data.path broken.gz": "cannot read broken.gz",
    "lm --data.path broken.txt.xz": "cannot read broken.txt.xz",
    "lm --data.path cut.gz": "cannot read cut.gz",
    "lm --data.path cut.xz": "cannot read cut.xz",
    "lm --data.path no_text": "data.path=no_text holds no text in files of the suffixes .txt",
    "lm --data.path short.txt": "is longer than the training part of the data",
    "lm --data.sequence-length 1000000": "data.sequence_length=1000000 is longer than",
    "lm --data.sequence-length 0": "data.sequence_length=0 must be at least 1",
    "lm --data.held-out 0": "data.held_out=0.0 must lie between 0 and 1",
    "lm --data.evaluation-sequences 0": "data.evaluation_sequences=0 must be at least 1",
    "lm --batch-size 12": "batch_size=12 is not divisible by the 8 devices of the mesh's data and",
    "lm --batch-size 3": "use 8, or a smaller mesh",
    "lm --mesh data=9": "needs 9 devices and there are 8",
    "lm --mesh model=2": "axis 'model' is unknown; the axes are data, fsdp, tensor",
    "lm --mesh data": "'' is not a whole number; write data=4",
    "lm --mesh data=0": "a size must be at least 1",
    "lm --mesh data=2,data=2": "axis 'data' is given twice",
    "lm --run-dir foreign": "foreign exists and is not a run directory",
    "lm --run-dir empty.txt": "empty.txt exists and is not a run directory",
    "lm --run-dir empty.txt/run": "cannot write to --run-dir empty.txt/run",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(command.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert MISTAKES[command] in output.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_help_lists_every_option_of_the_chosen_optimizer(
    name: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["lm", "--optimizer", name, "--help-all"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(OPTIMIZERS[name]):
        assert f"--optimizer.{field.name.replace('_', '-')}" in shown
    for option in ("--steps", "--data.path", "--model.hidden-size", "--run-dir", "--mesh"):
        assert option in shown
    assert "in steps" in shown
    assert "in tokens" in shown


@pytest.mark.parametrize("preset", presets.names())
def test_help_fits_three_screens(preset: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([preset, "--help"]) == 0
    shown = capsys.readouterr().out
    config = presets.load(preset).CONFIG
    assert shown.count("\n") <= 3 * 30
    for group in ("run", "data", "model", "optimizer"):
        assert f"\n{group}:\n" in shown
    for line in shown.partition("\nrun:")[2].splitlines():
        assert len(line) <= 80
    for field in dataclasses.fields(config.optimizer):
        assert f"--optimizer.{field.name.replace('_', '-')} " in shown
    assert f"  --steps {config.steps} " in shown
    assert "--help-all" in shown


def test_the_overview_lists_every_preset(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "lm" in presets.names()
    assert all(name in shown for name in presets.names())


@pytest.mark.parametrize("words", [["--optimizer", "muon"], ["--optimizer=muon"]])
def test_an_optimizer_by_name_takes_the_settings_of_the_preset(words: list[str]):
    config = cli.parse(["lm", *words, "--steps", "12"])
    assert config is not None
    assert config.optimizer == presets.load("lm").OPTIMIZERS["muon"]
    assert config.steps == 12


def test_versions_are_printed(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"mimuon-jax \S+, jax \S+, Python 3\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_options_of_the_optimizer_reach_it():
    words = "lm --optimizer.threshold inf --optimizer.measure gap --optimizer.no-nesterov"
    optimizer = getattr(cli.parse(words.split()), "optimizer", None)
    assert type(optimizer) is MiMuon
    assert (optimizer.threshold, optimizer.measure) == (math.inf, "gap")
    assert type(getattr(cli.parse(["lm", "--optimizer", "adamw"]), "optimizer", None)) is AdamW
    assert type(getattr(cli.parse(["lm", "--optimizer", "muon"]), "optimizer", None)) is Muon


@pytest.mark.parametrize(("received", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_one_line_and_its_own_exit_code(
    received: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def interrupted(*_: object) -> None:
        raise Interrupted("saved after step 3 of 6", received)

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["lm"]) == code
    assert capsys.readouterr().err == "interrupted: saved after step 3 of 6\n"
