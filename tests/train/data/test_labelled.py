"""Labelled images prepared by TFDS: a builder of five with the features of CIFAR-10."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.data.labelled import ImageData, read_images
from train.errors import BadInput

tfds: Any = pytest.importorskip("tensorflow_datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


class Few(tfds.core.GeneratorBasedBuilder):
    """Three images to train on and two held out; the label is the number modulo 2."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._examples(0, 3), "test": self._examples(3, 5)}

    def _generate_examples(self) -> Any:
        raise NotImplementedError

    def _examples(self, start: int, end: int) -> Any:
        for i in range(start, end):
            encoded = io.BytesIO()
            Image.fromarray(PIXELS[i]).save(encoded, "PNG")
            image = io.BytesIO(encoded.getvalue())  # TFDS encodes arrays by TensorFlow alone
            yield i, {"id": str(i), "image": image, "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the prepared data set."""
    folder = tmp_path_factory.mktemp("tfds")
    builder = Few(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_images_are_those_that_were_prepared_in_any_order(prepared: Path):
    training, held_out = read_images(ImageData(path=prepared))
    assert training.names == held_out.names == ("even", "odd")
    assert (len(training.labels), len(held_out.labels)) == (3, 2)
    for found, numbers in ((training, range(3)), (held_out, range(3, 5))):
        places = [int(np.flatnonzero((x == PIXELS).all((1, 2, 3)))[0]) for x in found.images]
        assert sorted(places) == list(numbers)
        np.testing.assert_array_equal(found.labels, np.asarray(places) % 2)


def test_what_cannot_be_read_is_one_line(prepared: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=r"nor with a prepared TFDS\s+dataset"):
        read_images(ImageData(path=tmp_path))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(BadInput, match=f"cannot read the train images of {tmp_path}: "):
        read_images(ImageData(path=tmp_path))
