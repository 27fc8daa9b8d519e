"""Detection data prepared by TFDS, here a builder of four records with the features of VOC."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.data import voc_tfds
from train.data.detection import DetectionData, read_pictures
from train.data.pictures import Annotated
from train.data.voc_annotation import TURNED
from train.data.voc_tfds import scan_tfds
from train.errors import BadInput

tfds: Any = pytest.importorskip("tensorflow_datasets")

BOXES = [[(11, 6, 31, 26), (41, 1, 60, 40)], [], [(11, 6, 31, 26)], [(70, 6, 90, 26)]]


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Four pictures of 60 x 40 pixels; every second object is difficult."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features
        objects = {
            "label": features.ClassLabel(names=["cat", "dog"]),
            "bbox": features.BBoxFeature(),
            "is_difficult": np.bool_,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "image/filename": features.Text(),
                    "objects": features.Sequence(objects),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for key, boxes in enumerate(BOXES):
            encoded = io.BytesIO()
            Image.new("RGB", (60, 40), (50 * key, 0, 0)).save(encoded, "JPEG")
            data = encoded.getvalue()
            objects = [
                {
                    "label": number % 2,
                    "bbox": tfds.features.BBox(top / 40, left / 60, bottom / 40, right / 60),
                    "is_difficult": bool(number % 2),
                }
                for number, (left, top, right, bottom) in enumerate(boxes)
                if right <= 60
            ]
            image = io.BytesIO(data if right_of(boxes) <= 60 else data[:-100])
            yield key, {"image": image, "image/filename": f"{key}.jpg", "objects": objects}


def right_of(boxes: list[tuple[int, int, int, int]]) -> int:
    return max((box[2] for box in boxes), default=0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the data set is prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def prepared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes TFDS look in that folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(home))


@pytest.mark.usefixtures("prepared")
def test_records_become_pictures_with_the_boxes_of_a_folder(capsys: pytest.CaptureFixture[str]):
    data = DetectionData(train=("tfds:tiny:train",), held_out=("tfds:tiny:test",))
    training, held_out = read_pictures(data, seed=0)
    assert isinstance(training, Annotated)
    assert training.names == held_out.names == ("cat",)  # every dog is difficult
    assert len(training) == 3
    copied = pickle.loads(pickle.dumps(training))
    found = {}
    for index, key in enumerate(training.keys):
        picture = copied.load(index, 60)
        assert picture.size == picture.image.size == (60, 40)
        number = int(key.split("(")[1][0])
        red = np.asarray(picture.image)[0, 0, 0]
        assert abs(int(red) - 50 * number) < 5
        found[number] = picture.boxes
        np.testing.assert_array_equal(picture.labels, 0)
    for number, boxes in found.items():
        expected = np.asarray(BOXES[number][:1], np.float32).reshape(-1, 4) - 1
        np.testing.assert_allclose(boxes, expected, atol=1e-4)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "picture that is also trained on: 3 (" in said[2]
    assert "broken image, skipped: 1 (tiny:train record" in said[0]
    assert training.fingerprint() == read_pictures(data, seed=0)[0].fingerprint()


@pytest.mark.usefixtures("prepared")
def test_an_unknown_split_is_named_with_those_there_are():
    with pytest.raises(BadInput, match=r"tfds:tiny has no split 'val'; it has t\w+, t\w+"):
        scan_tfds("tiny", "val")


def test_what_is_not_prepared_says_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(BadInput, match="voc/2007 holds no prepared dataset; prepare it") as got:
        scan_tfds("voc/2007", "train")
    said = str(got.value)
    assert f"tfds.builder('voc/2007', data_dir='{tmp_path}', file_format='array_record')" in said
    assert said.endswith("or choose another folder with $TFDS_DATA_DIR")
    assert "\n" not in said


def test_other_data_sets_are_refused_by_their_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    class Plain(Tiny):
        def _info(self) -> Any:
            text = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=text)

        def _generate_examples(self) -> Any:
            yield 0, {"text": "none"}

    Plain(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        BadInput, match="tfds:plain is not a detection data set: it has the features text"
    ):
        scan_tfds("plain", "train")


def test_a_place_of_tfds_needs_a_split():
    data = DetectionData(train=("tfds:voc",), held_out=("tfds:voc",))
    with pytest.raises(BadInput, match="names no split; write tfds:NAME:SPLIT"):
        read_pictures(data, seed=0)


def test_turned_pictures_are_upright_and_reported(monkeypatch: pytest.MonkeyPatch):
    """Boxes of records are fractions of the picture; which frame they had is unknown."""
    exif, encoded = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(encoded, "JPEG", exif=exif)
    objects = {"bbox": [np.asarray([0.5, 0.25, 1.0, 0.75])], "label": [0]}
    source = [{"image": encoded.getvalue(), "objects": objects}]
    info = SimpleNamespace(features={"objects": {"label": SimpleNamespace(names=["cat"])}})
    builder = SimpleNamespace(info=info)
    monkeypatch.setattr(voc_tfds, "_open", lambda name, split: (source, builder))
    scan = scan_tfds("turned", "train")
    assert scan.entries[0].size == (40, 60)
    assert scan.entries[0].objects == [("cat", (9.0, 29.0, 29.0, 59.0))]
    assert scan.trouble == [(TURNED, "turned:train record 0")]
