"""Mutated annotations and images: nothing crashes, and no valid picture is lost silently."""

import io
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.data.boxes import annotation, write_pair
from train.data.detection import DetectionData, training_batches
from train.data.pictures import Annotated, annotated
from train.data.voc import Scan, scan_folder

OBJECTS = [("cat", (11, 6, 31, 26)), ("dog", (20.5, 10, 60, 40)), ("cat", (1, 1, 9, 9))]
NAMES = ("cat", "dog")
TOKENS = (
    *(b"<", b">", b"</", b"&", b"&#x0;", b"<!--", b"<![CDATA[", b"<!DOCTYPE a [", b"\x00", b"\xff"),
    *(
        b"<object>",
        b"</object>",
        b"<bndbox>",
        b"<name/>",
        b"-",
        b"nan",
        b"inf",
        b"1e999",
        b"9" * 40,
    ),
    *(b"<difficult>1</difficult>", b"<xmin>7</xmin>", b'<?xml version="1.0" encoding="ucs-4"?>'),
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file after one to three random deletions, repetitions, overwrites or insertions."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 2, 7, 40))
        match rng.randrange(6):
            case 0:
                del out[at : at + length]
            case 1:
                out[at:at] = out[at : at + length]
            case 2:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                out[at:at] = rng.choice(TOKENS)
            case 4:
                out[at : at + length] = rng.randbytes(length)
            case _ if rng.random() < 0.3:
                del out[at:]
    return bytes(out)


def misstated(data: bytes, rng: random.Random) -> bytes:
    """An annotation that is still XML, with other or missing numbers, names or elements."""
    text = data.decode()
    for _ in range(rng.randint(1, 4)):
        found = rng.choice(list(re.finditer(r"(?<=>)[\w.]+(?=<)", text)) or [re.match("", text)])
        assert found is not None
        new = rng.choice(
            ("", "0", "-3", "7.25", "39", "61", "500", "1e99", "inf", "x", "cat", "&lt;")
        )
        text = text[: found.start()] + new + text[found.end() :]
        if rng.random() < 0.3:
            name = rng.choice(("name", "bndbox", "xmin", "ymax", "size", "object", "width"))
            text = re.sub(f"<{name}>.*?</{name}>", "", text, count=1)
    return text.encode()


def check(scan: Scan, stems: set[str], intact: set[str]) -> Annotated:
    """Every picture is used or reported as skipped; used ones are sound, and intact ones whole."""
    used = {Path(entry.key).stem for entry in scan.entries}
    skipped = [key for kind, key in scan.trouble if kind.endswith("skipped")]
    named = {Path(key.split(": ")[0]).stem for key in skipped}
    assert used | named == stems
    assert not used & named
    assert len(used) == len(scan.entries) == len(scan.files)
    assert len(named) == len(skipped)
    assert intact <= used
    pictures, unknown = annotated(NAMES, [(scan.files, scan.entries)])
    assert np.isfinite(pictures.boxes).all()
    for index, entry in enumerate(scan.entries):
        picture = pictures.load(index, 64)
        width, height = picture.size
        assert (picture.boxes[:, :2] >= 0).all()
        assert (picture.boxes[:, 2:] <= (width, height)).all()
        assert (picture.boxes[:, 2:] > picture.boxes[:, :2]).all()
        assert set(picture.labels) <= {0, 1}
        if Path(entry.key).stem in intact:
            expected = np.asarray([box for _, box in OBJECTS], np.float32) - 1
            np.testing.assert_array_equal(picture.boxes, expected)
            np.testing.assert_array_equal(picture.labels, [0, 1, 0])
    dropped = Counter(Path(key.split(": ")[0]).stem for _, key in unknown)
    found = Counter(Path(entry.key).stem for entry in scan.entries for _ in entry.objects)
    assert len(pictures.labels) == found.total() - dropped.total()
    return pictures


def train_on(pictures: Annotated) -> None:
    """A few batches come out sound."""
    data = DetectionData(size=32, max_objects=20)
    batches = training_batches(pictures, data, batch_size=8, steps=100, seed=0)
    for step in range(4):
        batch = batches[step]
        assert batch is not None
        boxes = batch["boxes"][batch["valid"]]
        assert np.isfinite(boxes).all()
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, 2:] > 0).all()


def test_mutated_annotations_are_used_or_skipped_by_name(tmp_path: Path):
    rng = random.Random(0)
    good = annotation(OBJECTS)
    for i in range(500):
        mutate = misstated if i % 2 else mutated
        write_pair(tmp_path, f"mutated{i}", mutate(good.encode(), rng))
    intact = {f"intact{i}" for i in range(10)}
    for stem in intact:
        write_pair(tmp_path, stem, good)
    scan = scan_folder(tmp_path)
    pictures = check(scan, intact | {f"mutated{i}" for i in range(500)}, intact)
    assert 250 < len(pictures) < 400
    assert len({kind for kind, _ in scan.trouble}) >= 6
    train_on(pictures)


def test_mutated_images_are_used_or_skipped_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rng = random.Random(1)
    intact = {f"intact{i}" for i in range(5)}
    stems = intact | {f"mutated{i}" for i in range(200)}
    for stem in sorted(stems):
        write_pair(tmp_path, stem, annotation(OBJECTS))
    for i in range(200):
        path = tmp_path / "JPEGImages" / f"mutated{i}.jpg"
        path.write_bytes(mutated(path.read_bytes(), rng))
    scan = scan_folder(tmp_path)
    usable = {path.stem for path in (tmp_path / "JPEGImages").iterdir() if decodes(path)}
    broken = {Path(key.split(": ")[0]).stem for kind, key in scan.trouble if "broken" in kind}
    assert usable == stems - broken
    assert 20 < len(broken) < 180
    pictures = check(scan, stems, set())
    assert intact <= {Path(key).stem for key in pictures.keys}
    train_on(pictures)
    assert "can no longer be read" not in capsys.readouterr().err


def decodes(path: Path) -> bool:
    """Whether all pixels of an image can be decoded."""
    try:
        Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    except Exception:
        return False
    return True
