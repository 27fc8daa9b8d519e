"""Twenty-five typical mistakes: each is one line that states the way out."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from train import cli, loop, presets, run_directory
from train.config_json import to_json


class Mistake(NamedTuple):
    command: str
    problem: str
    way_out: str
    environment: tuple[tuple[str, str], ...] = ()
    code: int = 2


MISTAKES = {
    "nothing": Mistake("", "name a preset first", "python -m train books_10m|"),
    "preset": Mistake("lmm", "preset 'lmm' is unknown", "did you mean lm?"),
    "experiment": Mistake("table2", "is an experiment", "python -m train compare table2"),
    "option": Mistake("lm --stepz 3", "option --stepz is unknown", "did you mean --steps?"),
    "one dash": Mistake("lm -steps 3", "option -steps is unknown", "did you mean --steps?"),
    "no dashes": Mistake("lm steps=3", "option steps=3 is unknown", "options start with --"),
    "group": Mistake("lm --head-dim 8", "--head-dim is unknown", "did you mean --model.head-dim?"),
    "optimizer": Mistake("lm --optimizer moun", "'moun' is unknown", "did you mean muon?"),
    "other optimizer": Mistake(
        "lm --optimizer muon --optimizer.tau 1", "--optimizer.tau belongs", "--optimizer muonclip"
    ),
    "value missing": Mistake("lm --steps", "--steps needs", "a whole number"),
    "value twice": Mistake("lm --steps 3 4", "option 4 is unknown", "options start with --"),
    "not a number": Mistake("lm --steps many", "not many", "--steps needs a whole number"),
    "a fraction": Mistake("lm --steps 1e3", "not 1e3", "--steps needs a whole number"),
    "a switch": Mistake("lm --profile yes", "without a value", "write --profile, or --no-profile"),
    "choice": Mistake("lm --precision low", "not low", "needs default, high or highest"),
    "range": Mistake("lm --batch-size 0", "batch_size=0", "must be at least 1"),
    "devices": Mistake("lm --mesh data=9", "there are 8", "use a smaller size, or -1"),
    "data": Mistake(
        "lm --data.path no.txt", "data.path=no.txt does not exist", "name a file or a folder"
    ),
    "no permission": Mistake("lm", "Permission denied", "cannot write to --run-dir runs/lm"),
    "other folder": Mistake(
        "lm --run-dir foreign", "foreign exists and is not a run", "choose another --run-dir"
    ),
    "other run": Mistake(
        "lm --run-dir run --steps 7", "steps is 9 there and 7 here", "choose another --run-dir"
    ),
    "working directory": Mistake(
        "sample elsewhere/run", "elsewhere/run is not a run directory", "python -m train PRESET"
    ),
    "narrow terminal": Mistake(
        "lm --stepz 3", "is unknown", "did you mean --steps?", (("COLUMNS", "9"), ("LINES", "2"))
    ),
    "colour": Mistake(
        "lm --steps x", "not x", "a whole number", (("FORCE_COLOR", "1"), ("TERM", "xterm"))
    ),
    "Control-C": Mistake("lm", "interrupted", "the same command resumes", code=130),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder that is not a run, and a run of nine steps."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("important")
    (tmp_path / "run").mkdir()
    config = to_json(presets.load("lm").CONFIG) | {"steps": 9, "run_dir": "run"}
    record = {"config": config, "data": {}, "files": {}}
    run_directory.files(tmp_path / "run").config.write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_are_twenty_five():
    assert len(MISTAKES) == 25


@pytest.mark.parametrize("name", MISTAKES)
def test_a_typical_mistake_is_one_line_with_a_way_out(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    mistake = MISTAKES[name]
    for variable, value in mistake.environment:
        monkeypatch.setenv(variable, value)
    if name == "no permission":  # chmod does not stop root

        def refused(path: Path, **_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", refused)
        for compiled in ("make_state", "jit_step"):
            monkeypatch.setattr(loop, compiled, lambda *_, **__: None)
    if name == "Control-C":

        def pressed(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "run", pressed)
    before = sorted(folder.rglob("*"))
    assert cli.main(mistake.command.split()) == mistake.code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err[:-1].isprintable()  # no colours
    assert not set("│╭─") & set(output.err)
    assert "Traceback" not in output.err
    assert mistake.problem in output.err
    assert mistake.way_out in output.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "20"}])
def test_help_is_plain_in_any_terminal(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert cli.main(["lm", "--help"]) == 0
    output = capsys.readouterr()
    assert "\x1b" not in output.out
    assert "--steps 200" in output.out
    assert output.err == ""
