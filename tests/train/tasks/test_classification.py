"""Classification: its data, and runs that train, resume and do not depend on the mesh."""

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from models.classifier import ResNetConfig
from train import cli, loop, presets
from train.data.labelled import (
    ImageData,
    digits,
    read_images,
    training_batches,
    with_label_noise,
)
from train.errors import BadInput
from train.loop import run
from train.mesh import make_mesh
from train.metrics import read_metrics
from train.optimizers import MuonMVR1
from train.task import split_batch
from train.tasks.classification import (
    Classification,
    _draw,
    _evaluation,
    _known,
    _standardization,
)
from train.trained import load_trained, on_one_device

pytestmark = pytest.mark.standard_promotion


def archive(path: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """A zip with one image per name, of the given size, each in another colour."""
    with zipfile.ZipFile(path, "w") as file:
        for i, (name, size) in enumerate(sizes.items()):
            buffer = io.BytesIO()
            Image.new("RGB", size, (10 * i, 0, 0)).save(buffer, "PNG")
            file.writestr(name, buffer.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three training images and one held-out image of each."""
    training = {f"{name}/{i}.png": (4, 3) for name in ("cat", "ant") for i in range(3)}
    archive(tmp_path / "train.zip", training)
    archive(tmp_path / "test.zip", {"ant/0.png": (4, 3), "cat/0.png": (4, 3)})
    return tmp_path


def test_a_folder_of_archives_is_read_with_its_classes_in_order(folder: Path):
    training, held_out = read_images(ImageData(path=folder))
    assert training.names == held_out.names == ("ant", "cat")
    assert training.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert training.images.shape == (6, 3, 4, 3)
    assert training.images[:, 0, 0, 0].tolist() == [30, 40, 50, 0, 10, 20]


def test_bad_folders_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(BadInput, match="is not a folder with train and test"):
        read_images(ImageData(path=tmp_path / "missing"))
    archive(folder / "test.zip", {"ant/0.png": (4, 3), "cow/0.png": (4, 3)})
    with pytest.raises(BadInput, match="classes differ"):
        read_images(ImageData(path=folder))
    archive(folder / "test.zip", {"ant/0.png": (4, 4), "cat/0.png": (4, 3)})
    with pytest.raises(BadInput, match="different sizes"):
        read_images(ImageData(path=folder))
    (folder / "test.zip").write_bytes(b"no archive")
    with pytest.raises(BadInput, match="cannot read"):
        read_images(ImageData(path=folder))


def test_classes_of_any_name_are_drawn(tmp_path: Path):
    images, _ = digits()
    names = ("$x", "日本", r"\frac", "_^{", "🙂", *"56789")
    _draw(images.first(16)._replace(names=names), np.zeros(16, int), tmp_path / "shown.png")
    with Image.open(tmp_path / "shown.png") as drawn:
        assert drawn.format == "PNG"


def test_batches_depend_on_step_and_seed_and_cover_every_image():
    training, _ = digits()
    small = training.first(32)

    def batch(step: int, seed: int = 0, **data: object) -> tuple[np.ndarray, np.ndarray]:
        found: Any = training_batches(small, ImageData(**data), batch_size=8, seed=seed)[step]
        return found

    seen = np.concatenate([batch(step)[0] for step in range(4)])
    rows = lambda x: sorted(map(bytes, x))  # noqa: E731
    assert rows(seen) == rows(small.images)
    for changes in ({}, {"shift": 2, "flip": True}):
        np.testing.assert_array_equal(batch(5, **changes)[0], batch(5, **changes)[0])
    assert not np.array_equal(batch(0)[1], batch(0, seed=1)[1])
    shifted, labels = batch(0, shift=2)
    assert shifted.shape == (8, 8, 8, 1)
    np.testing.assert_array_equal(labels, batch(0)[1])
    assert not np.array_equal(shifted, batch(0)[0])


def test_label_noise_gives_a_share_of_the_training_images_another_class():
    training, _ = digits()
    noisy = with_label_noise(training, 0.3, seed=0)
    wrong = noisy.labels != training.labels
    assert wrong.sum() == round(0.3 * len(training.labels))
    assert set(noisy.labels) == set(range(10))
    assert noisy.labels.dtype == training.labels.dtype
    np.testing.assert_array_equal(noisy.images, training.images)
    np.testing.assert_array_equal(noisy.labels, with_label_noise(training, 0.3, seed=0).labels)
    assert (noisy.labels != with_label_noise(training, 0.3, seed=1).labels).any()
    # Every other class is equally likely: within five standard deviations of a binomial.
    shifts = (noisy.labels - training.labels)[wrong] % 10
    expected = wrong.sum() / 9
    assert np.abs(np.bincount(shifts, minlength=10)[1:] - expected).max() < 5 * expected**0.5
    with pytest.raises(BadInput, match=r"data\.label_noise=1\.5 must lie between 0 and 1"):
        ImageData(label_noise=1.5)


def test_a_task_trains_on_noisy_labels_of_its_seed(tmp_path: Path):
    def labels(**fields: Any) -> np.ndarray:
        batches: Any = config(tmp_path, **fields).task(make_mesh("data=1")).batches
        return np.concatenate([np.asarray(batches[k][1]) for k in range(4)])

    noisy = ImageData(label_noise=1.0)
    assert not (labels(data=noisy) == labels()).any()
    np.testing.assert_array_equal(labels(data=noisy), labels(data=noisy))


def config(run_dir: Path, **fields: object) -> Classification:
    """Four steps of a tiny network."""
    tiny = Classification(
        preset="tiny",
        run_dir=run_dir,
        steps=4,
        batch_size=8,
        evaluate_every=2,
        mesh="data=1",
        model=ResNetConfig(channels=1, width=4, blocks=(1, 1)),
        optimizer=MuonMVR1(),
    )
    return dataclasses.replace(tiny, **fields)


def numbers(directory: Path) -> list[dict]:
    """The metrics of a run, without measurements of time."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "wall"} for line in lines]


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_statistics_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(config(tmp_path / "whole"), quiet=True)
    seen = []

    def interrupt(*arguments: object) -> object:
        seen.append(None)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return split_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "split_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path / "part"), quiet=True)
    part = run(config(tmp_path / "part"), quiet=True)
    assert part.trained
    assert numbers(part.run_dir) == numbers(whole.run_dir)
    assert (whole.run_dir / "predictions.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_loss_does_not_depend_on_the_mesh(tmp_path: Path):
    lines = [
        numbers(run(config(tmp_path / mesh, mesh=mesh), quiet=True).run_dir)
        for mesh in ("data=1", "data=4")
    ]
    for one, four in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=2e-4)


@pytest.mark.slow
def test_evaluation_weighs_every_image_alike(tmp_path: Path):
    task = config(tmp_path, batch_size=56).task(make_mesh("data=1"))  # 360 images: 392 rows
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    _, held_out = digits()
    found = task.evaluate(params, model_state)
    other = config(tmp_path, batch_size=8).task(make_mesh("data=1")).evaluate(params, model_state)
    assert found["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert found["accuracy"] == other["accuracy"]
    assert found["accuracy"] * len(held_out.labels) == pytest.approx(
        round(found["accuracy"] * len(held_out.labels)), abs=1e-6
    )


def test_a_model_that_does_not_fit_the_data_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match="channels=3 must be 1"):
        config(tmp_path, model=ResNetConfig()).task(make_mesh("data=1"))


def test_the_presets_parse(capsys: pytest.CaptureFixture[str]):
    for name in ("classify", "cifar10"):
        assert cli.main([name, "--help"]) == 0
        assert "--data.shift" in capsys.readouterr().out
        json.dumps([type(o).__name__ for o in presets.load(name).OPTIMIZERS.values()])


@pytest.mark.slow
def test_the_preset_learns(tmp_path: Path):
    preset = presets.load("classify").CONFIG
    result = run(dataclasses.replace(preset, run_dir=tmp_path / "run", mesh="data=1"), quiet=True)
    accuracy = numbers(result.run_dir)[-1]["accuracy"]
    assert accuracy > 0.95


@pytest.mark.slow
def test_a_trained_classifier_names_the_classes_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_dir, images = tmp_path / "run", tmp_path / "images"
    run(config(run_dir), quiet=True)
    _, held_out = digits()
    images.mkdir()
    for i in range(3):
        Image.fromarray(held_out.images[i, ..., 0]).save(images / f"{i}.png")
    Image.new("L", (9, 8)).save(images / "wide.png")
    (images / "broken.png").write_bytes(b"no image")
    capsys.readouterr()
    assert cli.main(["predict", str(run_dir), str(images), "--checkpoint", "newest"]) == 0
    shown, warnings = capsys.readouterr()
    lines = (run_dir / "predict" / "classes.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["image"] for line in found] == ["0.png", "1.png", "2.png"]
    for line, said in zip(found, shown.splitlines(), strict=True):
        assert list(line["classes"]) == list(held_out.names)
        assert sum(line["classes"].values()) == pytest.approx(1, abs=1e-5)
        best, share = max(line["classes"].items(), key=lambda item: item[1])
        assert said.startswith(f"{line['image']}: {best} {share:.1%}, ")
    assert "image that does not have 8 x 8 pixels, skipped: 1 (wide.png: 9 x 8)" in warnings
    assert "broken image, skipped: 1 (broken.png: " in warnings

    # The probabilities are those that the evaluation of these images sees.
    step, *model = load_trained(
        run_dir,
        on_one_device(config(run_dir).architecture()[1]),
        which="newest",
        best=("loss", "min"),
    )
    assert step == 4
    few = held_out.first(3)
    losses = [
        -np.log(line["classes"][few.names[k]]) for line, k in zip(found, few.labels, strict=True)
    ]
    evaluate = _evaluation(
        lambda p, m, x: nnx.merge(config(run_dir).architecture()[0], p, m)(
            _standardization(_known(digits()[0]))(x), training=False
        ),
        few, 3, make_mesh("data=1"),
    )  # fmt: skip
    assert evaluate(*model)["loss"] == pytest.approx(np.mean(losses), rel=1e-4)

    (run_dir / "images.json").unlink()
    assert cli.main(["predict", str(run_dir), str(images)]) == 2
    assert "images.json is missing" in capsys.readouterr().err
