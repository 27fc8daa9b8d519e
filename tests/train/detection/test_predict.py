"""Predictions on the images of a folder: which are read, and in which frame their boxes are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.train.data.boxes import extent, rectangle
from train.data.decoding import TURNS
from train.detection.predict import predict

SIDE = 64
OPTIONS: dict[str, Any] = {"names": ["日本", "$x$"], "side": SIDE, "confidence": 0.25}


def find(image: np.ndarray) -> np.ndarray:
    """A detector that finds the extent of bright pixels."""
    assert image.shape == (SIDE, SIDE, 3)
    return np.asarray([[*extent(image.min(-1) > 150), 0.9, 0]], np.float32)


def boxes(output: Path) -> dict[str, list[float]]:
    lines = (output / "detections.jsonl").read_text(encoding="utf-8").splitlines()
    found = map(json.loads, lines)
    return {line["image"]: line["objects"][0]["box"] for line in found}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_image(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawing = rectangle((128, 64), (20, 10, 60, 30), (250, 250, 250))
    (tmp_path / "in").mkdir()
    drawing.save(tmp_path / "in" / "a.png", exif=exif)
    upright = drawing.transpose(TURNS[orientation]) if orientation in TURNS else drawing
    predict(find, tmp_path / "in", tmp_path / "out", **OPTIONS)
    expected = extent(np.asarray(upright).min(-1) > 150)
    np.testing.assert_allclose(boxes(tmp_path / "out")["a.png"], expected, atol=2)
    with Image.open(tmp_path / "out" / "a.png.png") as drawn:
        assert drawn.width * upright.height == drawn.height * upright.width


def test_images_of_a_folder_are_those_of_the_common_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "in"
    folder.mkdir()
    drawing = rectangle((64, 64), (8, 8, 40, 40), (250, 250, 250))
    for name in ("b.PNG", "a.JFIF", "._a.png", ".hidden.png", "Thumbs.db"):
        drawing.save(folder / name, "PNG")
    deep = np.asarray(drawing.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "c.tif")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / "torn.png").write_bytes((folder / "b.PNG").read_bytes()[:60])
    (folder / "again.png").symlink_to("b.PNG")
    predict(find, folder, tmp_path / "out", **OPTIONS)
    found = boxes(tmp_path / "out")
    assert list(found) == ["a.JFIF", "b.PNG", "c.tif"]
    for box in found.values():
        np.testing.assert_allclose(box, [8, 8, 40, 40], atol=1)
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "a.JFIF: 1 日本"
    first, second = said.err.splitlines()
    assert first.endswith(
        "3 files left out: 1 read already under another name (first: again.png), 1 empty (first: "
        "empty.png), 1 of another type (first: notes.txt)"
    )
    assert "broken image, skipped: 1 (torn.png: " in second
