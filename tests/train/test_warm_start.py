"""Exported models and warm starts: what is read back is bit for bit what was written."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file

from models.classifier import ResNetConfig
from models.gpt2 import tiny
from train import cli, presets, run_directory
from train.checkpoints import Checkpoints
from train.config import Config
from train.data.detection import DetectionData
from train.errors import BadInput
from train.mesh import make_mesh
from train.step import State, abstract_state, make_state
from train.tasks.classification import Classification
from train.tasks.detection import Detection, Detector
from train.trained import load_run
from train.warm_start import weights_of_run

MESH = make_mesh("data=1")
OTHER = ResNetConfig(width=4, blocks=(1, 1), channels=1)


def state_of(config: Config) -> State:
    return make_state(config.task(MESH), optax.sgd(0.0), MESH, seed=0)


def stored(config: Config) -> State:
    """A run directory with a checkpoint of random weights, as if it had been trained."""
    task, random = config.task(MESH), np.random.default_rng(0)
    shapes = abstract_state(task, optax.sgd(0.0), MESH)
    state = jax.tree.map(
        lambda x: jax.device_put(random.normal(size=x.shape).astype(x.dtype), x.sharding), shapes
    )
    if state.average is not None:
        state = state._replace(average=(state.params, state.model_state))
    config.directory.mkdir()
    run_directory.describe(config, task.data, task.files)
    run_directory.write_texts(config.directory, task.files)
    folder = run_directory.files(config.directory).checkpoints
    checkpoints = Checkpoints(folder, keep=1, best=task.best, warn=pytest.fail)
    checkpoints.evaluations = {7: {"loss": 1.0, "fitness": 0.5}}
    checkpoints.save(7, state)
    checkpoints.close()
    return state


def assert_same(one: State, other: State) -> None:
    """The same model, and averages of it."""
    chex.assert_trees_all_equal(
        (one.params, one.model_state, one.average), (other.params, other.model_state, other.average)
    )


def classifier(run_dir: Path, **model: Any) -> Classification:
    return dataclasses.replace(
        presets.load("classify").CONFIG,
        run_dir=run_dir,
        mesh="data=1",
        model=dataclasses.replace(OTHER, **model),
    )


@pytest.mark.slow
def test_a_classifier_goes_out_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config, folder = classifier(tmp_path / "run"), tmp_path / "exported"
    state = stored(config)
    assert cli.main(["export", str(tmp_path / "run"), str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote step 7 to {folder}\nevaluate, predict, ")
    assert sorted(p.name for p in folder.iterdir()) == [
        *("config.json", "images.json", "model.safetensors")
    ]
    arrays = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(arrays["head.kernel"], state.params["head"]["kernel"])
    for source in (tmp_path / "run", folder):
        again = dataclasses.replace(config, run_dir=tmp_path / "new", pretrained=source)
        assert_same(state_of(again), state)
    Image.new("L", (8, 8), 99).save(tmp_path / "image.png")
    lines = []
    for source in (tmp_path / "run", folder):
        assert cli.main(["predict", str(source), str(tmp_path / "image.png")]) == 0
        lines.append((source / "predict" / "classes.jsonl").read_text())
    assert lines[0] == lines[1]


def test_a_model_of_another_shape_is_one_line_with_the_first_differences(tmp_path: Path):
    stored(classifier(tmp_path / "run"))
    config = classifier(tmp_path / "new", width=8)
    config = dataclasses.replace(config, pretrained=tmp_path / "run")
    said = (
        r"run does not fit the model: .* is \[.*\] there and \[.*\] here; .*; .*; and \d+ more. Use"
    )
    with pytest.raises(BadInput, match=said):
        state_of(config)
    config = dataclasses.replace(presets.load("lm").CONFIG, pretrained=tmp_path / "run")
    with pytest.raises(BadInput, match="is a run of Classification, and this is a run of Language"):
        state_of(config)
    config = dataclasses.replace(classifier(tmp_path / "new"), pretrained=tmp_path)
    with pytest.raises(BadInput, match="is not a run directory"):
        state_of(config)


@pytest.mark.slow
def test_other_classes_leave_their_head_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = stored(classifier(tmp_path / "run"))
    config = classifier(tmp_path / "new", classes=3)
    config = dataclasses.replace(config, pretrained=tmp_path / "run")
    assert_head_alone_is_new(config, config.architecture()[1], state, "head")
    assert "has another number of classes: here their head starts at ra" in capsys.readouterr().err


def assert_head_alone_is_new(config: Config, init: Callable, state: State, head: str) -> None:
    """Everything else is that of the state; the head is drawn from the key."""
    key, everywhere = jax.random.key(5), jax.sharding.NamedSharding(MESH, jax.P())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(init, key),
    )
    found = weights_of_run(config, init, like, key)
    again = weights_of_run(config, init, like, jax.random.key(6))
    theirs = dict(jax.tree_util.tree_leaves_with_path((state.params, state.model_state)))
    drawn = 0
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(again), strict=True
    ):
        if head in jax.tree_util.keystr(path, simple=True, separator="/"):
            drawn += not np.array_equal(leaf, other)
        else:
            chex.assert_trees_all_equal(leaf, other, theirs[path])
    chex.assert_trees_all_equal_shapes(found, like)
    assert drawn


@pytest.mark.slow
def test_a_gpt2_goes_out_and_comes_back(small: Callable[..., Any], tmp_path: Path):
    model = dataclasses.replace(tiny(), n_embd=8, n_head=2, n_layer=1, n_positions=32)
    config, folder = small(tmp_path / "run", model=model), tmp_path / "exported"
    state = stored(config)
    assert cli.main(["export", str(tmp_path / "run"), str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    for source in (tmp_path / "run", folder):
        again = dataclasses.replace(config, run_dir=tmp_path / "new", pretrained=source)
        assert_same(state_of(again), state)
    qwen = small(tmp_path / "new", pretrained=tmp_path / "run")
    with pytest.raises(BadInput, match="has a GPT2, and the run a Qwen3; use another preset"):
        state_of(qwen)


@pytest.mark.slow
def test_a_detector_goes_out_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = Detection(
        preset="detect",
        run_dir=tmp_path / "run",
        mesh="data=1",
        data=DetectionData(size=64, scenes=8, held_out_scenes=4),
        model=Detector(width=0.03125),
    )
    folder, state = tmp_path / "exported", stored(config)
    assert cli.main(["export", str(tmp_path / "run"), str(folder)]) == 0
    assert (folder / "names.txt").read_bytes() == (tmp_path / "run" / "names.txt").read_bytes()
    _, *model = load_run(config, folder, which="best")
    chex.assert_trees_all_equal(model, [state.params, state.model_state])
    capsys.readouterr()
    init = config.model.functions(3)[1]
    config = dataclasses.replace(config, pretrained=folder)
    assert_head_alone_is_new(config, init, state, "/classes/")
    assert "has another number of classes" in capsys.readouterr().err
