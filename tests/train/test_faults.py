"""Runs under faults: one line of error, nothing lost, and the same command continues."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from benchmarks import disturbed, faults
from benchmarks.regression import Regression
from train import checkpoints, cli, distributed, loop, record, run_directory
from train.checkpoint_folder import read_evaluations, steps
from train.checkpoints import load_model
from train.config_json import to_json
from train.data.cache import cached, note
from train.errors import BadInput, MachineError
from train.experiments import runs
from train.loop import run
from train.tasks.language_model import LanguageModel

pytestmark = pytest.mark.standard_promotion

FULL = OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an undisturbed run."""
    directory = tmp_path_factory.mktemp("faults") / "whole"
    assert disturbed.call(directory) == (0, "")
    return directory


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, before its result was written."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "rename")) for n in faults.FAILING]
)
def test_a_failing_system_call_is_one_line_and_the_same_command_continues(name: str, whole: Path):
    fault = faults.failing_call(whole, name, k=3, number=28)
    assert (fault.code, fault.problem) == (1, "")


@pytest.mark.parametrize("name", ["MetricsFile", "GateLog", "Trace"])
def test_a_record_that_cannot_be_opened_leaves_no_file_open(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(record, name, full)
        code, error = disturbed.call(tmp_path / "run")
    assert (code, disturbed.wrong(code, error)) == (1, "")
    opened = list(Path("/proc/self/fd").iterdir())
    assert not [p for p in opened if p.exists() and p.resolve().is_relative_to(tmp_path)]


def test_a_full_disk_is_one_line_and_the_same_command_continues(whole: Path):
    outcomes = list(faults.full_disks(whole, [0, 60]))
    assert [outcome.problem for outcome in outcomes if outcome.problem] == []
    assert {outcome.code for outcome in outcomes} <= {1}


def test_without_the_right_to_mount_a_disk_the_size_of_files_is_limited(
    whole: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (outcome,) = faults.full_disks(whole, [0])
    assert outcome == ("files of 512 bytes", 1, "")


@pytest.mark.parametrize(
    "name",
    [
        "12.unsealed",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("12", "12.removed", "9" * 10)),
    ],
)
@pytest.mark.parametrize("kind", faults.FOREIGN)
def test_a_foreign_name_beside_the_checkpoints(name: str, kind: str, copied: Path, whole: Path):
    faults.FOREIGN[kind](copied / "checkpoints" / name)
    code, error = disturbed.call(copied)
    assert (code, disturbed.wrong(code, error)) == (0, "")
    assert disturbed.repaired(whole, copied) == ""


@pytest.mark.parametrize("content", ["[]", "null", "5", '"x"', '{"evaluations.json": []}'])
def test_a_manifest_of_another_kind_is_damage(content: str, copied: Path, whole: Path):
    (copied / "checkpoints" / "8" / "INTEGRITY.json").write_text(content)
    code, error = disturbed.call(copied)
    assert code == 0
    assert error.startswith(f"warning: checkpoint {copied / 'checkpoints' / '8'} is damaged")
    assert disturbed.repaired(whole, copied) == ""


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda p: p.write_text(""), lambda p: p.write_text("[]\n5\n")]
)
def test_the_result_does_not_depend_on_the_log(
    damage: Callable[[Path], object], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluated = loop.evaluated

    def at_the_end(state: Any) -> Any:
        if int(state.step) == 8:
            damage(tmp_path / "run" / "metrics.jsonl")
            monkeypatch.setattr(loop, "evaluated", evaluated)
        return evaluated(state)

    monkeypatch.setattr(loop, "evaluated", at_the_end)
    assert disturbed.call(tmp_path / "run") == (0, "")
    results = [(d / "result.json").read_text() for d in (whole, tmp_path / "run")]
    assert results[0] == results[1]


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"steps": "x"}'])
def test_a_damaged_result_is_written_again(content: str, copied: Path, whole: Path):
    (copied / "result.json").write_text(content)
    assert disturbed.repaired(whole, copied) == ""


def test_more_steps_continue_a_finished_run(whole: Path, copied: Path, capsys: Any):
    shutil.copy(whole / "result.json", copied)
    result = run(disturbed.configuration(copied, steps=12))
    assert (result.trained, result.steps) == (True, 12)
    shown = capsys.readouterr().out
    assert "steps was 8 and is 12: from here on the learning rate follows the schedule" in shown
    assert "resuming after step 8" in shown
    assert [line["step"] for line in disturbed.numbers(copied) if line["split"] == "train"] == [
        *range(1, 13)
    ]
    assert read_evaluations(copied / "checkpoints" / "12").keys() == {0, 2, 4, 6, 8, 10, 12}
    assert not run(disturbed.configuration(copied, steps=12)).trained
    with pytest.raises(BadInput, match="steps is 12 there and 8 here"):
        run(disturbed.configuration(copied))


@pytest.mark.slow
def test_data_that_moved_is_accepted_if_its_checksum_is_the_same(
    small: Callable[..., LanguageModel], text_file: Path, tmp_path: Path, capsys: Any
):
    config = small(tmp_path / "run", steps=2)
    run(config, quiet=True)
    (tmp_path / "moved.txt").write_bytes(text_file.read_bytes())
    moved = dataclasses.replace(config.data, path=tmp_path / "moved.txt")
    (tmp_path / "run" / "result.json").unlink()
    run(dataclasses.replace(config, data=moved))
    assert 'moved.txt", with the same checksum' in capsys.readouterr().out
    assert run_directory.read_config(tmp_path / "run") == dataclasses.replace(config, data=moved)
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    (tmp_path / "moved.txt").write_bytes(text_file.read_bytes()[::-1])
    with pytest.raises(BadInput, match="the data changed since"):
        run(dataclasses.replace(config, data=moved, steps=4), quiet=True)


def test_of_two_configurations_on_one_new_directory_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other_first(action: Callable[[], None]) -> None:
        monkeypatch.undo()
        run(disturbed.configuration(tmp_path / "run", seed=1), quiet=True)
        action()

    monkeypatch.setattr(distributed, "first_alone", other_first)
    code, error = disturbed.call(tmp_path / "run")
    assert (code, disturbed.wrong(code, error)) == (2, "")
    assert "holds a run of another configuration: seed is 1 there and 0 here" in error
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"] == to_json(disturbed.configuration(tmp_path / "run", seed=1))


def test_a_damaged_text_of_the_run_is_refused_and_written_again(copied: Path):
    (copied / "note.txt").write_text("rows of another permutation\n")
    with pytest.raises(
        BadInput, match=r"note.txt is damaged.*the training command writes it again"
    ):
        run_directory.read_config(copied)
    run(disturbed.configuration(copied), quiet=True)
    assert isinstance(run_directory.read_config(copied), Regression)


def test_a_checkpoint_that_the_run_removes_meanwhile_is_passed_over(
    copied: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, real = copied / "checkpoints", checkpoints._load
    newest = steps(folder)[-1]

    def remove_first(path: Path, parts: Any) -> Any:
        if path.name == str(newest):
            shutil.rmtree(path)
        return real(path, parts)

    monkeypatch.setattr(checkpoints, "_load", remove_first)
    model = {"params": {"kernel": jnp.zeros((4, 4))}, "model_state": {"count": jnp.int32(0)}}
    found, _ = load_model(
        folder, model | {"average": None}, which="newest", best=("loss", "min"), warn=pytest.fail
    )
    assert found == steps(folder)[-1] < newest


def test_a_removed_run_directory_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, seen = loop.split_batch, []

    def remove(*arguments: Any) -> Any:
        seen.append(None)
        if len(seen) == 3:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return real(*arguments)

    monkeypatch.setattr(loop, "split_batch", remove)
    code, error = disturbed.call(tmp_path / "run")
    assert (code, disturbed.wrong(code, error)) == (1, "")
    assert error.startswith("stopped: the checkpoint of step")


def test_a_clock_that_jumps_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jumps = iter(range(10**9))
    monkeypatch.setattr("time.time", lambda: 1.7e9 + 1e7 * (-1) ** next(jumps))
    assert disturbed.call(tmp_path / "run") == (0, "")
    assert disturbed.numbers(tmp_path / "run") == disturbed.numbers(whole)


FAILING_SAVE = """
import os, sys
from pathlib import Path
from benchmarks.disturbed import call

real = os.mkdir

def full(path, *arguments, **keywords):
    if "unsealed" in str(path):
        raise OSError(28, "No space left on device", str(path))
    real(path, *arguments, **keywords)

os.mkdir = full
print(*call(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_process_ends_after_a_save_whose_folder_cannot_be_made(tmp_path: Path, repository: Path):
    done = subprocess.run(
        [sys.executable, "-c", FAILING_SAVE, str(tmp_path / "run")],
        cwd=repository,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith("1 stopped: the checkpoint of step 2 could not be written")
    assert disturbed.without_logs(done.stderr) == ""


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = "lm --run-dir=~/run --data.path ~/text --data.tokenizer ~/t.json --data.cache=~/c"
    config = cli.parse([*words.split(), "--sample.prompt", "~/x"])
    assert isinstance(config, LanguageModel)
    assert config.run_dir == tmp_path / "run"
    assert config.data.path == tmp_path / "text"
    assert config.data.tokenizer == str(tmp_path / "t.json")
    assert config.data.cache == tmp_path / "c"
    assert config.sample.prompt == "~/x"
    assert cli.main(["evaluate", "~nobody/run"]) == 2


def test_lines_of_progress_go_if_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def make(folder: Path) -> None:
        note("learning a vocabulary")
        (folder / "file").touch()
        if folder.parent.name == "full":
            raise FULL

    with pytest.raises(MachineError, match="No space left on device"):
        cached(tmp_path / "full", "vocabulary", make)
    assert capsys.readouterr().err == ""
    cached(tmp_path / "free", "vocabulary", make)
    assert capsys.readouterr().err == "learning a vocabulary\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cached(tmp_path / "terminal", "vocabulary", make)
    assert capsys.readouterr().err == "\r\x1b[2Klearning a vocabulary\r\x1b[2K"


def test_a_full_disk_is_no_result_of_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise MachineError("the disk is full")

    planned = runs.Run("muon", "", 0, disturbed.configuration(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "run", full)
        with pytest.raises(MachineError):
            runs.train(planned, print)
    assert runs.train(planned, print).stopped is None


def test_an_output_that_takes_nothing_is_one_line(whole: Path, tmp_path: Path, repository: Path):
    command = [sys.executable, "-m", "train", "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=repository, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    message = (
        "[Errno 28] No space left on device; once that is repaired, the same command continues"
    )
    assert disturbed.without_logs(done.stderr) == f"stopped: {message}\n"


@pytest.mark.slow
def test_training_does_not_depend_on_the_locale(tmp_path: Path, repository: Path):
    (tmp_path / "text.txt").write_text("Größe, naïveté, 数学. " * 300, encoding="utf-8")
    settings = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "JAX_PLATFORMS": "cpu",
    }
    words = [
        "lm",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--evaluate-every",
        "1",
        "--data.sequence-length",
        "16",
        "--mesh",
        "data=1",
        "--data.tokenizer",
        "bpe",
        "--model.vocab-size",
        "300",
        "--model.hidden-size",
        "16",
        "--model.head-dim",
        "8",
        "--model.intermediate-size",
        "32",
        "--model.num-hidden-layers",
        "2",
        "--sample.length",
        "8",
    ]
    words += ["--data.path", str(tmp_path / "text.txt"), "--data.cache", str(tmp_path / "cache")]
    words += ["--run-dir", str(tmp_path / "run"), "--sample.prompt", "数学"]
    for command in (words, ["sample", str(tmp_path / "run")], ["evaluate", str(tmp_path / "run")]):
        done = subprocess.run(
            [sys.executable, "-m", "train", *command],
            cwd=repository,
            env=os.environ | settings,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
    assert (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8").startswith("数学")


@pytest.mark.slow
def test_failing_calls_and_full_disks_lose_nothing():
    # The other rows take minutes each: `python -m benchmarks faults` has the whole table.
    rows = list(itertools.islice(faults.rows(1), 2))
    assert [row.first_failure for row in rows if row.failures] == []
