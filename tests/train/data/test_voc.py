"""Folders in VOC layout: what is read, what is skipped, and how it is reported."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.data.boxes import annotation, write_pair
from train.data.detection import DetectionData, read_pictures
from train.data.pictures import Annotated, annotated
from train.data.voc import Scan, scan_folder
from train.errors import BadInput

CAT = ("cat", (11, 6, 31, 26))


def load(scan: Scan, names: tuple[str, ...] = ("cat", "dog")) -> Annotated:
    return annotated(names, [(scan.files, scan.entries)])[0]


def test_boxes_follow_the_convention_of_the_specification(tmp_path: Path):
    # centre (min + max) / 2 - 1, size max - min
    write_pair(tmp_path, "a", annotation([CAT, ("dog", (1.5, 2, 60, 40))]))
    pictures = load(scan_folder(tmp_path))
    picture = pictures.load(0, 60)
    np.testing.assert_allclose(picture.boxes, [[10, 5, 30, 25], [0.5, 1, 59, 39]])
    np.testing.assert_array_equal(picture.labels, [0, 1])
    assert picture.size == picture.image.size == (60, 40)
    assert pictures.fingerprint()["objects"] == 2


def test_splits_are_lists_or_folders_and_can_be_joined(tmp_path: Path):
    for stem in "abc":
        write_pair(tmp_path, stem, annotation([CAT]))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c 1\na -1\n\n")
    (lists / "val.txt").write_text("b\nc\n")
    for stem in "de":
        write_pair(tmp_path / "test", stem, annotation([CAT]))

    def keys(split: str | None) -> list[str]:
        return [Path(entry.key).stem for entry in scan_folder(tmp_path, split).entries]

    assert keys("train") == ["c", "a"]
    assert keys("train+val") == ["c", "a", "b"]
    assert keys("test") == ["d", "e"]
    assert keys("val+test") == ["b", "c", "d", "e"]
    assert keys(None) == ["a", "b", "c"]
    with pytest.raises(BadInput, match=r"has no split 'tran' \(did you mean train\?\)"):
        scan_folder(tmp_path, "tran")


def test_a_flat_folder_of_any_image_format_is_read(tmp_path: Path):
    for stem, suffix, mode in (("a", ".png", "P"), ("b", ".jpeg", "L"), ("c", ".webp", "RGB")):
        (tmp_path / f"{stem}.xml").write_text(annotation([CAT]))
        Image.new("RGB", (60, 40), (200, 100, 50)).convert(mode).save(tmp_path / f"{stem}{suffix}")
    pictures = load(scan_folder(tmp_path))
    assert len(pictures) == 3
    for index in range(3):
        assert pictures.load(index, 60).image.mode == "RGB"


def test_what_is_wrong_is_skipped_or_clipped_and_said_once_with_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_pair(tmp_path, "good", annotation([CAT]))
    write_pair(tmp_path, "empty", annotation([]))
    write_pair(tmp_path, "blank", "")
    write_pair(tmp_path, "cut", annotation([CAT])[:80])
    write_pair(tmp_path, "bomb", f'<!DOCTYPE a [<!ENTITY b "c">]>{annotation([CAT])}')
    write_pair(tmp_path, "far", annotation([("cat", (100, 100, 200, 200)), CAT]))
    write_pair(tmp_path, "over", annotation([("cat", (-30, 6, 31, 400))]))
    write_pair(tmp_path, "flat", annotation([("cat", (5, 5, 5, 9)), ("cat", (9, 9, 5, 20)), CAT]))
    write_pair(tmp_path, "twice", annotation([CAT, CAT]))
    write_pair(tmp_path, "nan", annotation([("cat", ("nan", 1, 2, 3)), ("cat", (1, 2, 3, ""))]))
    write_pair(tmp_path, "hard", annotation([CAT], extra="<difficult>1</difficult>"))
    write_pair(tmp_path, "dog", annotation([("dog", (1, 1, 9, 9))]))
    write_pair(tmp_path, "other", annotation([CAT], size=(600, 400)))
    write_pair(tmp_path, "torn", annotation([CAT]))
    torn = tmp_path / "JPEGImages" / "torn.jpg"
    torn.write_bytes(torn.read_bytes()[:-40])
    write_pair(tmp_path, "lost", annotation([CAT]))
    (tmp_path / "JPEGImages" / "lost.jpg").unlink()
    write_pair(tmp_path, "alone", annotation([CAT]))
    (tmp_path / "Annotations" / "alone.xml").unlink()

    data = DetectionData(train=(str(tmp_path),), held_out=(str(tmp_path),), classes=("cat",))
    training, _ = read_pictures(data, seed=0)
    assert isinstance(training, Annotated)
    stems = [Path(key).stem for key in training.keys]
    usable = ["dog", "empty", "far", "flat", "good", "hard", "nan", "other", "over", "twice"]
    assert stems == usable
    boxes = {stem: training.load(i, 60).boxes.tolist() for i, stem in enumerate(stems)}
    cat = [[10, 5, 30, 25]]
    assert boxes["far"] == boxes["flat"] == boxes["good"] == boxes["twice"] == boxes["other"] == cat
    assert boxes["over"] == [[0, 5, 30, 40]]
    assert boxes["dog"] == boxes["empty"] == boxes["hard"] == boxes["nan"] == []

    said = capsys.readouterr().err.splitlines()
    where = f"warning: {tmp_path}: "
    other = "Annotations/other.xml: states 600 x 400 for 60 x 40 pixels"
    expected = {
        "1 file left out: 1 empty (first: Annotations/blank.xml)",
        "image without an annotation, skipped: 2 (JPEGImages/alone.jpg, JPEGImages/blank.jpg)",
        "annotation without an image, skipped: 1 (Annotations/lost.xml)",
        "box outside the image, dropped: 1 (Annotations/far.xml)",
        "box partly outside the image, clipped: 1 (Annotations/over.xml)",
        "box without area, dropped: 2 (Annotations/flat.xml)",
        "repeated object, dropped: 1 (Annotations/twice.xml)",
        "box that is not numbers, dropped: 2 (Annotations/nan.xml)",
        "object of an unknown class, dropped: 1 (JPEGImages/dog.jpg: dog)",
        f"annotation that states another image size, used: 1 ({other})",
        "annotation without objects, picture used as background: 1 (Annotations/empty.xml)",
    }
    assert {where + line for line in expected} <= set(said)
    broken = [line for line in said if "broken" in line]
    assert any("broken image, skipped: 1 (JPEGImages/torn.jpg: " in line for line in broken)
    assert any("broken annotation, skipped: 2 (Annotations/bomb.xml: " in line for line in broken)
    assert where + "picture that is also trained on: 10 (JPEGImages/dog.jpg, " in said[-1]
    assert len(said) == 2 * (len(expected) + 2) + 1  # training and held-out part


def test_a_file_that_breaks_after_it_was_read_leaves_the_others_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for stem in "abc":
        write_pair(tmp_path, stem, annotation([CAT]))
    pictures = load(scan_folder(tmp_path))
    expected = np.asarray(pictures.load(2, 60).image)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    Image.new("RGB", (61, 40)).save(tmp_path / "JPEGImages" / "b.jpg")
    for index in (0, 1, 0):
        picture = pictures.load(index, 60)
        assert picture.size == picture.image.size == (60, 40)
        assert np.unique(picture.image).tolist() == [114]
        assert picture.boxes.shape == (0, 4)
        assert picture.labels.shape == (0,)
    np.testing.assert_array_equal(pictures.load(2, 60).image, expected)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("a gray picture without objects takes its place" in line for line in said)
    assert "JPEGImages/a.jpg" in said[0]
    assert "it had 60 x 40 pixels, and has 61 x 40 now" in said[1]


@pytest.mark.parametrize("size", [(640, 480), (501, 333), (1000, 20), (37, 53), (8, 8)])
def test_a_picture_decoded_at_a_fraction_of_its_size_keeps_its_frame(
    tmp_path: Path, size: tuple[int, int]
):
    write_pair(tmp_path, "a", annotation([CAT], size))
    Image.new("RGB", size).save(tmp_path / "JPEGImages" / "a.jpg")
    pictures = load(scan_folder(tmp_path))
    for needed in (32, 100, 4000):
        picture = pictures.load(0, needed)
        assert picture.size == size
        longer = max(picture.image.size)
        assert longer >= min(needed, max(size)) or longer * picture.reduced >= max(size)
        assert picture.image.size == tuple(-(-side // picture.reduced) for side in size)


def test_missing_places_are_one_clear_line(tmp_path: Path):
    def read(*train: str, **options: object) -> None:
        read_pictures(DetectionData(train=train, held_out=train, **options), seed=0)

    with pytest.raises(BadInput, match="nowhere is not a folder; it should hold"):
        read(f"{tmp_path}/nowhere:train")
    with pytest.raises(BadInput, match="nowhere is not a folder, and it names no split"):
        read("nowhere")
    with pytest.raises(BadInput, match="holds no usable picture"):
        read(str(tmp_path))
    write_pair(tmp_path, "a", "<broken")
    with pytest.raises(BadInput, match="the first of 1 reasons: broken annotation, skipped: Ann"):
        read(str(tmp_path))
    write_pair(tmp_path, "a", annotation([CAT]))
    with pytest.raises(BadInput, match=r"no object of data\.train has such a name; it has cat"):
        read(str(tmp_path), classes=("dog",))
    with pytest.raises(BadInput, match="belong together"):
        DetectionData(train=("a",))
    write_pair(tmp_path, "a", annotation([]))
    with pytest.raises(BadInput, match="has pictures, but no objects in them"):
        read(str(tmp_path))


def test_the_fingerprint_follows_images_boxes_and_names(tmp_path: Path):
    write_pair(tmp_path, "a", annotation([CAT]))
    scan = scan_folder(tmp_path)
    first = load(scan).fingerprint()
    assert first == load(scan_folder(tmp_path)).fingerprint()
    assert load(scan, ("cat", "cow")).fingerprint() != first
    write_pair(tmp_path, "a", annotation([("cat", (11, 6, 31, 27))]))
    assert load(scan_folder(tmp_path)).fingerprint() != first
    write_pair(tmp_path, "a", annotation([CAT]))
    Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / "a.jpg")
    assert load(scan_folder(tmp_path)).fingerprint() != first


def test_real_annotations_are_read_whole(shared: Path):
    scan = scan_folder(shared / "data" / "bccd", "train+val+test")
    pictures = load(scan, ("Platelets", "RBC", "WBC"))
    assert pictures.fingerprint() | {"crc32": 0} == {
        "images": 364,
        "objects": 4886,
        "classes": 3,
        "crc32": 0,
    }
    assert [trouble[0] for trouble in scan.trouble] == ["box without area, dropped"] * 2
