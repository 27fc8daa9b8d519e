"""`python -m train evaluate`, `... sample`, `... export`: a run is read from its directory."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax
import pytest
from safetensors import SafetensorError

from models import qwen3
from train import cli, export, presets, run_directory
from train.checkpoint_folder import best_step
from train.config import Config
from train.config_json import from_json, to_json
from train.data.text import TextData
from train.data.tokenizers import Bytes
from train.errors import BadInput, shown
from train.loop import run
from train.mesh import make_mesh
from train.metrics import read_metrics
from train.optimizers import OPTIMIZERS
from train.step import make_state
from train.tasks.language_model import LanguageModel

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def trained(
    small: Callable[..., Any], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a finished run that learned its tokenizer."""
    folder = tmp_path_factory.mktemp("trained")
    config = small(folder / "run", steps=2, evaluate_every=1)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=300),
        data=TextData(path=text_file, sequence_length=16, tokenizer="bpe", cache=folder / "cache"),
    )
    run(config, quiet=True)
    return folder / "run"


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, without its text."""
    shutil.copytree(trained, tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["data"] |= {"path": "gone.txt", "cache": str(tmp_path / "cache")}
    path.write_text(json.dumps(record))
    return tmp_path / "moved"


def evaluations(directory: Path) -> dict[int, dict[str, Any]]:
    lines = read_metrics(directory / "metrics.jsonl")
    return {line["step"]: line for line in lines if line["split"] == "validation"}


@pytest.mark.parametrize("preset", presets.names())
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_configuration_comes_back_from_its_json(preset: str, optimizer: str):
    module = presets.load(preset)
    config = dataclasses.replace(module.CONFIG, optimizer=OPTIMIZERS[optimizer]())
    stored = json.loads(json.dumps(to_json(config)))
    assert from_json(Config, stored) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, 'config.steps is "3" where int is expected'),
        ({"steps": True}, "config.steps is true where int is expected"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"type": "Detector"}, 'config is "Detector" where one of Config, '),
        ({"speed": 1}, "config has speed, which LanguageModel does not have"),
        ({"data": {"type": "TextData"}}, "config.data has no source, path"),
        ({"checkpoint_every": 1.5}, "config.checkpoint_every is 1.5 where int is expected"),
        ({"compute_dtype": "float8"}, 'is "float8" where one of "float32", "bfloat16" is expected'),
        ({"optimizer": None}, "config.optimizer is null where one of Optimizer, "),
    ],
)
def test_a_run_of_another_version_is_one_line_with_the_field(
    change: dict[str, Any],
    message: str,
    small: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    record = {"config": to_json(small(tmp_path)) | change, "data": {}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    for command in ("evaluate", "sample"):
        assert cli.main([command, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {tmp_path / 'config.json'} was written by another version")
        assert message in error
        assert error.count("\n") == 1


def test_a_field_renamed_since_an_earlier_release_is_read(
    small: Callable[..., Any], tmp_path: Path
):
    stored = to_json(small(tmp_path, max_skipped_steps=7))
    stored["skipped_at_most"] = stored.pop("max_skipped_steps")
    (tmp_path / "config.json").write_text(json.dumps({"config": stored, "data": {}}))
    assert run_directory.read_config(tmp_path).max_skipped_steps == 7


def test_a_run_from_before_some_fields_is_read(small: Callable[..., Any], tmp_path: Path):
    config = small(tmp_path, optimizer=OPTIMIZERS["mimuon"]())
    stored = to_json(config)
    del stored["precision"], stored["attention"], stored["log"]
    del stored["model"]["rope_scaling"], stored["model"]["attention_bias"]
    for name in ("cooldown", "lookahead", "lookahead_decay", "outer_every", "relative_to"):
        del stored["optimizer"][name]
    (tmp_path / "config.json").write_text(json.dumps({"config": stored, "data": {}}))
    assert run_directory.read_config(tmp_path) == config


def test_a_missing_field_is_named(small: Callable[..., Any], tmp_path: Path):
    stored = to_json(small(tmp_path))
    del stored["optimizer"]["clip_norm"]
    with pytest.raises(BadInput, match=r"config\.optimizer has no clip_norm"):
        from_json(Config, stored)


@pytest.mark.slow
def test_a_run_that_looks_ahead_is_read_at_its_point_of_evaluation(
    small: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ahead = OPTIMIZERS["adamw"](lookahead=5.0, lookahead_decay=0.0, learning_rate=0.1)
    run(small(tmp_path / "run", steps=2, evaluate_every=1, optimizer=ahead), quiet=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2", ignore_errors=True)
    assert cli.main(["evaluate", str(tmp_path / "run"), "--checkpoint", "newest"]) == 0
    shown = capsys.readouterr().out.split("loss", 1)[1].split()[0]
    assert float(shown) == pytest.approx(evaluations(tmp_path / "run")[1]["loss"], rel=1e-5)
    assert cli.main(["sample", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("which", ["best", "newest"])
def test_evaluate_repeats_what_the_run_has_measured(
    which: str, trained: Path, capsys: pytest.CaptureFixture[str]
):
    step = best_step(trained / "checkpoints", ("loss", "min")) if which == "best" else 2
    assert cli.main(["evaluate", str(trained), "--checkpoint", which]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{trained}, {which} checkpoint, step {step} of 2:"
    shown = {words[0]: words[1] for words in map(str.split, lines)}
    assert set(shown) == {"loss", "perplexity", "bits_per_byte", "word_perplexity"}
    assert step is not None
    for name, value in shown.items():
        assert float(value) == pytest.approx(evaluations(trained)[step][name], rel=1e-5)


def test_evaluate_takes_another_text(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "noise.txt").write_text("zqxj vwkz " * 200)
    words = ["--data.validation", str(tmp_path / "noise.txt"), "--data.cache", str(tmp_path)]
    assert cli.main(["evaluate", str(trained), *words]) == 0
    loss = float(capsys.readouterr().out.splitlines()[1].split()[1])
    assert loss > evaluations(trained)[2]["loss"] + 0.1


def test_sample_writes_again_what_the_run_wrote_without_its_data(
    trained: Path,
    moved: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(moved.parent)
    assert cli.main(["sample", moved.name, "--checkpoint", "newest"]) == 0
    assert capsys.readouterr().out == shown((trained / "sample.txt").read_text())
    words = ["--prompt", "square", "--length", "3", "--temperature", "1", "--seed"]
    texts = set()
    for seed in ("1", "2", "2"):
        assert cli.main(["sample", str(moved), *words, seed]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 2
    assert all(text.startswith("square") for text in texts)


def test_a_damaged_best_checkpoint_is_passed_over_and_left_where_it_is(
    moved: Path, capsys: pytest.CaptureFixture[str]
):
    (moved / "checkpoints" / "2" / "evaluations.json").write_text("{}")
    before = sorted(moved.rglob("*"))
    assert cli.main(["sample", str(moved), "--length", "1", "--checkpoint", "newest"]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"warning: checkpoint {moved / 'checkpoints' / '2'} is damaged")
    assert sorted(moved.rglob("*")) == before
    shutil.rmtree(moved / "checkpoints")
    assert cli.main(["sample", str(moved)]) == 2
    assert "holds no intact checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate", "name a run directory first: python -m train evaluate RUN_DIR"),
        ("evaluate --data.path x", "name a run directory first"),
        ("sample nowhere", "nowhere is not a run directory (no config.json)"),
        ("evaluate RUN --steps 3", "option --steps is unknown"),
        ("sample RUN --lenght 3", "(did you mean --length?)"),
        ("sample RUN --length 0", "sample.length=0 must be at least 1"),
        ("evaluate RUN --batch-size 12 --mesh data=8", "batch_size=12 is not divisible"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, message: str, trained: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(words.replace("RUN", str(trained)).split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--help", ["evaluate ", "sample ", "evaluate RUN_DIR", "export RUN_DIR FOLDER"]),
        ("evaluate --help", ["RUN_DIR --help says more", "--batch-size 16 ", "--mesh data=-1 "]),
        ("sample --help", ["--temperature 0.8 ", "--seed 0 "]),
        ("predict --help", ["--confidence 0.25 ", "--head one_to_one "]),
        ("export --help", ["--dtype float32 ", "--checkpoint best "]),
        ("compare --help", ["--seeds 3 ", "--scale small ", "table2 ", "stability "]),
        ("evaluate RUN --help", ["--data.validation", "--mesh", "--checkpoint {best,newest}"]),
        ("sample RUN --help", ["--prompt", "--temperature", "--seed"]),
    ],
)
def test_help(words: str, found: list[str], trained: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(words.replace("RUN ", f"{trained} ").split()) == 0
    output = capsys.readouterr().out
    assert all(text in output for text in found)


def test_a_task_that_writes_no_text_says_so(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(run_directory, "read_config", lambda _: Config(preset="other"))
    assert cli.main(["sample", str(trained)]) == 2
    assert "is a run of Config, which does not write text" in capsys.readouterr().err


def test_an_export_of_bytes_says_that_it_has_no_tokenizer(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(export, "tokenizer_of", lambda config: Bytes())
    assert cli.main(["export", str(trained), str(tmp_path / "exported")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "no tokenizer files: tokens are bytes, so encode a text with list(text.encode())"
    ]
    assert not list((tmp_path / "exported").glob("tokenizer*"))


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("Io error: No space left on device")],
)
def test_an_export_to_a_full_disk_is_one_line(
    error: Exception,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(qwen3, "save", full)
    assert cli.main(["export", str(trained), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"stopped: cannot write {tmp_path / 'out'}: ")
    assert said.count("\n") == 1


def test_a_tokenizer_with_entries_swapped_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(stored), encoding="utf-8")
    for command, *operands in (["evaluate"], ["sample"], ["export", str(tmp_path / "out")]):
        assert cli.main([command, str(tmp_path / "run"), *operands]) == 2
        said = capsys.readouterr().err
        assert "tokenizer.json is damaged" in said
        assert said.count("\n") == 1


def test_what_is_exported_starts_another_run(
    trained: Path,
    small: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "exported"
    assert cli.main(["export", str(trained), str(folder), "--checkpoint", "newest"]) == 0
    assert capsys.readouterr().out == f"wrote step 2 to {folder}\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    config = run_directory.read_config(trained)
    config = dataclasses.replace(
        config.reopened(tmp_path / "run"),
        data=dataclasses.replace(config.data, tokenizer=str(folder / "tokenizer.json")),
        pretrained=folder,
    )
    mesh = make_mesh("data=1")
    state = make_state(config.task(mesh), optax.sgd(0.0), mesh, seed=1)
    loss = config.task(mesh).evaluate(state.params, state.model_state)["loss"]
    assert loss == pytest.approx(evaluations(trained)[2]["loss"], rel=1e-6)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, head_dim=10))
    with pytest.raises(BadInput, match=r"exported has head_dim=8 and the run has 10; leave out"):
        make_state(other.task(mesh), optax.sgd(0.0), mesh, seed=1)
    options = ["lm", "--pretrained", str(folder), "--data.tokenizer", str(folder)]
    taken = cli.parse([*options, "--model.head-dim", "8", "--model.initializer-range", "0.5"])
    assert isinstance(taken, LanguageModel)
    assert taken.model == dataclasses.replace(config.model, initializer_range=0.5)
    assert cli.main([*options, "--model.head-dim", "10"]) == 2
    error = capsys.readouterr().err
    assert "has head_dim=8 and the run has 10; leave out --model.head-dim" in error
    assert len(error) < 300
    (folder / "model.safetensors").unlink()  # architectures are compared before weights are read
    with pytest.raises(BadInput, match=r"exported has head_dim=8 and the run has 10; leave out"):
        make_state(other.task(mesh), optax.sgd(0.0), mesh, seed=1)
    gone = dataclasses.replace(config, pretrained=tmp_path / "gone")
    with pytest.raises(BadInput, match=r"pretrained=.*gone cannot be used: .*config.json"):
        make_state(gone.task(mesh), optax.sgd(0.0), mesh, seed=1)
    assert cli.main(["export", str(trained), str(folder)]) == 2
    assert "exported exists; name a folder that does not" in capsys.readouterr().err
    assert cli.main(["export", str(trained)]) == 2
    assert "name a folder to create" in capsys.readouterr().err
