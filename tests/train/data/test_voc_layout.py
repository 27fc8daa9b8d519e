"""Which pictures are in a VOC folder: lists, suffixes, names of folders, links and system files."""

import io
import os
import tempfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.train.data.boxes import annotation, write_pair
from train.data.decoding import IMAGE_SUFFIXES, Frame
from train.data.detection import DetectionData, read_pictures
from train.data.folders import describe
from train.data.pictures import annotated
from train.data.voc import Scan, scan_folder
from train.data.voc_annotation import TURNED
from train.errors import BadInput

CAT = ("cat", (2, 2, 5, 4))


def stems(scan: Scan) -> list[str]:
    return [Path(entry.key).stem for entry in scan.entries]


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 4), level % 256).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with plain and with difficult names; lists are added by the tests."""
    folder = tmp_path_factory.mktemp("voc")
    for stem in ("g0", "g1", "with space", "img (1)", "x 1", "x", "a.b", "сад"):
        write_pair(folder, stem, annotation([CAT]))
    for kind in ("Annotations", "JPEGImages"):
        (folder / kind / "sub").mkdir()
    write_pair(folder, "sub/n", annotation([CAT]))
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("g0\ng1\n", ["g0", "g1"]),
        ("\ufeffg0\r\ng1", ["g0", "g1"]),
        (" g0 \n\n\t\ng1\t\r\n", ["g0", "g1"]),
        ("g0  1\ng1 -1\nwith space  0\n", ["g0", "g1", "with space"]),
        ("with space\nimg (1)\n", ["with space", "img (1)"]),
        ("x 1\nx  -1\n", ["x 1", "x"]),
        ("g0.jpg\ng1.XML\na.b\na.b.jpg\n", ["g0", "g1", "a.b"]),
        ("JPEGImages/g0.jpg\n/x/y/g1.jpg\nC:\\voc\\with space.jpg 1\n", ["g0", "g1", "with space"]),
        ("sub/n\n", ["n"]),
        ("/data/sub/n.jpg 1\n./JPEGImages/g0\n", ["n", "g0"]),
        ("сад\n", ["сад"]),
        ("g0\ng0.jpg\ng1\n", ["g0", "g1"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_name_pictures_in_many_ways(
    folder: Path, content: str, expected: list[str], encoding: str
):
    (folder / "ImageSets" / "Main" / "split.txt").write_bytes(content.encode(encoding))
    scan = scan_folder(folder, "split")
    assert stems(scan) == expected
    assert scan.trouble == []


def test_listed_names_that_are_not_there_are_grouped(folder: Path):
    (folder / "ImageSets" / "Main" / "split.txt").write_text("g0\nnope\n/x/gone.jpg 1\n")
    scan = scan_folder(folder, "split")
    assert stems(scan) == ["g0"]
    kind = "listed picture that is not there, skipped"
    place = "ImageSets/Main/split.txt"
    assert scan.trouble == [(kind, f"{place}: nope"), (kind, f"{place}: /x/gone.jpg 1")]
    (folder / "ImageSets" / "Main" / "split.txt").write_text("")
    with pytest.raises(BadInput, match="split split holds no usable picture"):
        scan_folder(folder, "split")


def test_images_of_every_suffix_and_annotations_in_capitals_are_read(tmp_path: Path):
    for place in ("JPEGImages", "Annotations"):
        (tmp_path / place).mkdir()
    suffixes = [*IMAGE_SUFFIXES, ".Jpg", ".PNG", ".WEBP", ".JFIF", ".Tiff"]
    for i, suffix in enumerate(suffixes):
        (tmp_path / "JPEGImages" / f"{i:02d}{suffix}").write_bytes(png(i))
        name = f"{i:02d}{'.XML' if i % 2 else '.xml'}"
        (tmp_path / "Annotations" / name).write_text(annotation([CAT], (6, 4)))
    scan = scan_folder(tmp_path)
    assert stems(scan) == [f"{i:02d}" for i in range(len(suffixes))]
    assert scan.trouble == []
    assert scan.left_out == []


@pytest.mark.parametrize("images", ["jpegimages", "images", "Images", "JPEGIMAGES"])
@pytest.mark.parametrize("annotations", ["annotations", "ANNOTATIONS"])
def test_folders_may_have_names_in_any_case(tmp_path: Path, images: str, annotations: str):
    write_pair(tmp_path / "voc", "a", annotation([CAT]))
    (tmp_path / "voc" / "JPEGImages").rename(tmp_path / "voc" / images)
    (tmp_path / "voc" / "Annotations").rename(tmp_path / "voc" / annotations)
    lists = tmp_path / "voc" / "imagesets" / "main"
    lists.mkdir(parents=True)
    (lists / "Train.TXT").write_text("a\n")
    assert stems(scan_folder(tmp_path / "voc")) == ["a"]
    assert stems(scan_folder(tmp_path / "voc", "Train")) == ["a"]
    assert stems(scan_folder(tmp_path, "voc")) == ["a"]


def test_of_two_files_with_one_name_one_is_read_and_the_other_counted(tmp_path: Path):
    write_pair(tmp_path, "a", annotation([CAT]))
    write_pair(tmp_path, "a", annotation([CAT]), suffix=".png")
    scan = scan_folder(tmp_path)
    assert [entry.key for entry in scan.entries] == ["JPEGImages/a.jpg"]
    assert describe(scan.left_out) == (
        "1 file left out: 1 of a name that another file has already (first: JPEGImages/a.png)"
    )


# What a generated folder is made of. Damaged files cannot be used; all others can.
STEMS = ("a", "b b", "c.d", "sub/e", ".h", "sub/._a", ".ipynb_checkpoints/a", "__MACOSX/a")
OTHERS = ("README", "Thumbs.db", ".DS_Store", "sub/desktop.ini", "classes.txt", "notes.pdf")
images = st.tuples(
    st.sampled_from([".jpg", ".JPG", ".png", ".Tif"]), st.sampled_from(["good"] * 3 + ["", "bad"])
)
texts = st.tuples(st.sampled_from([".xml", ".XML"]), st.sampled_from(["good"] * 3 + ["", "bad"]))


def slow_pairs(images: Path, annotations: Path) -> tuple[list[str], set[str]]:
    """Stems that can be used, and names that are left out, by every file's name and content."""
    found: dict[str, dict[str, bool]] = {"image": {}, "annotation": {}}  # stem: good
    out = set()
    for place, kind, known in (
        (images, "image", (".jpg", ".png", ".tif")),
        (annotations, "annotation", (".xml",)),
    ):
        names = [
            os.path.relpath(os.path.join(where, name), place)  # noqa: PTH118
            for where, _, names in os.walk(place, followlinks=True)
            for name in names
        ]
        for name in sorted(names, key=lambda n: [*map(n.lower().endswith, known)], reverse=True):
            path = PurePosixPath(name)
            if any(p[0] == "." or p.lower() in ("__macosx", "thumbs.db", "desktop.ini")
                   for p in path.parts):  # fmt: skip
                continue
            data = (place / name).read_bytes()
            stem = str(path.with_suffix(""))
            if path.suffix.lower() not in known or not data or stem in found[kind]:
                out.add(f"{place.name}/{name}")
            else:
                found[kind][stem] = not data.startswith(b"bad")
    both = found["image"].keys() & found["annotation"].keys()
    usable = [s for s in both if found["image"][s] and found["annotation"][s]]
    return sorted(usable), out


@settings(max_examples=100)
@given(
    files=st.dictionaries(st.sampled_from(STEMS), st.tuples(st.lists(images, max_size=2), texts)),
    others=st.sets(st.sampled_from(OTHERS)),
    linked=st.sampled_from(["", "JPEGImages", "JPEGImages/sub", "Annotations"]),
)
def test_generated_folders_are_read_as_by_the_slow_rule(
    files: dict[str, tuple[list[tuple[str, str]], tuple[str, str]]], others: set[str], linked: str
):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "voc"
        contents = {"good": None, "": b"", "bad": b"bad"}
        for place in ("JPEGImages", "Annotations"):
            (root / place / "sub").mkdir(parents=True)
            for name in others:
                (root / place / name).write_bytes(b"x")
        for number, (stem, (pictures, (suffix, state))) in enumerate(files.items()):
            good = annotation([CAT], (6, 4)).encode()
            for place, ending, damage, whole in (
                ("Annotations", suffix, state, good),
                *(("JPEGImages", ending, damage, png(number)) for ending, damage in pictures),
            ):
                path = root / place / f"{stem}{ending}"
                path.parent.mkdir(exist_ok=True)
                data = contents[damage]
                path.write_bytes(whole if data is None else data)
        if linked:
            (root / linked).rename(Path(temporary) / "elsewhere")
            (root / linked).symlink_to(Path(temporary) / "elsewhere")
        usable, out = slow_pairs(root / "JPEGImages", root / "Annotations")
        if linked:  # a cycle, which the slow rule would follow without end
            (Path(temporary) / "elsewhere" / "back").symlink_to(temporary)
        if not usable:
            with pytest.raises(BadInput, match="holds no usable picture"):
                scan_folder(root)
            return
        scan = scan_folder(root)
        found = [str(PurePosixPath(e.key).relative_to("JPEGImages").with_suffix(""))
                 for e in scan.entries]  # fmt: skip
        assert found == usable
        assert {name for _, name in scan.left_out} == out
        assert all(kind.endswith("skipped") for kind, _ in scan.trouble)
        pictures, _ = annotated(("cat",), [(scan.files, scan.entries)])
        for index, entry in enumerate(scan.entries):
            assert entry.crc32 == zlib.crc32((root / entry.key).read_bytes())
            np.testing.assert_array_equal(pictures.load(index, 6).boxes, [[1, 1, 4, 3]])


EXTENSIONS = (
    "xBMPTrue xJPEGTrue xJPGTrue xJpgFalse xPNGTrue xPngFalse xWEBPTrue xgifFalse xjfifFalse "
    "xjpegFalse xtifFalse xtiffFalse"
)
CASES = {  # folder of cases, split: usable pictures, a part of what is said
    ("lists", "bom"): ("g0 g1", ""),
    ("lists", "dups"): ("g0 g1", ""),
    ("lists", "labels"): ("g0 g1 g2", ""),
    ("lists", "missing"): ("g0", "listed picture that is not there, skipped"),
    ("lists", "paths"): ("g0 g1", ""),
    ("lists", "spaces"): ("g0,with space,img (1)", ""),
    ("lists", "trailing"): ("g0 g1 g2", ""),
    ("lists", "withext"): ("g0 g1", ""),
    ("lower", None): ("g0 g1 g2", ""),
    ("xmlupper", None): ("a g0 g1 g2", ""),
    ("noobj", None): ("a b", "annotation without objects, picture used as background"),
    ("exif", None): ("g0 g1 g2 raw shown", ""),
    ("ext", None): (f"g0 g1 g2 {EXTENSIONS}", ""),
    ("modes", None): ("alpha0 bmp cmyk g0 g1 g2 gray i12 i16 la one p rgba webp", ""),
    ("encodings", None): (
        "bom g0 g1 g2 gbk nl tail utf16",
        "broken annotation, skipped;image without an annotation, skipped",
    ),
}


@pytest.mark.parametrize(("case", "expected"), CASES.items())
def test_cases_from_reports(shared: Path, case: tuple[str, str | None], expected: tuple[str, str]):
    scan = scan_folder(shared / "cases" / "voc" / case[0], case[1])
    assert stems(scan) == expected[0].split("," if "," in expected[0] else None)
    assert {kind for kind, _ in scan.trouble} == {*filter(None, expected[1].split(";"))}


def test_objects_of_the_cases_are_read(shared: Path):
    def objects(case: str) -> dict[str, list]:
        entries = scan_folder(shared / "cases" / "voc" / case).entries
        return {Path(entry.key).stem: entry.objects for entry in entries}

    difficult = {stem: len(found) for stem, found in objects("difficult").items()}
    assert [difficult[f"d{i}"] for i in range(9)] == [1, 1, 1, 2, 2, 2, 1, 1, 1]
    assert [name for name, _ in objects("names")["a"]] == ["Cat", "cat", "日本", 'a,b "q" <c>']
    turned = objects("exif")  # one box, written down for the stored and for the upright picture
    assert turned["shown"] == [("cat", (29, 20, 59, 60))]
    assert turned["raw"] == [("cat", Frame(80, 120, 6).upright((20, 20, 60, 50)))]
    assert turned["raw"] == [("cat", (30, 20, 60, 60))]


def test_warnings_about_many_pictures_are_one_line_for_each_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    exif = Image.Exif()
    exif[0x0112] = 3
    for place in ("JPEGImages", "Annotations"):
        (tmp_path / place).mkdir()
    for i in range(12):
        turned = i < 5
        image = Image.new("L", (20, 10), 10 * i)
        image.save(tmp_path / "JPEGImages" / f"{i:02d}.png", **({"exif": exif} if turned else {}))
        text = annotation([CAT, (f"dog{i}", CAT[1])], (20, 10) if turned else (20 + i, 99))
        (tmp_path / "Annotations" / f"{i:02d}.xml").write_text(text)
    (tmp_path / "JPEGImages" / "notes.txt").write_text("x")
    place = str(tmp_path)
    read_pictures(DetectionData(train=(place,), held_out=(place,), classes=("cat",)), seed=0)
    lines = capsys.readouterr().err.splitlines()
    said = [line.removeprefix(f"warning: {place}: ") for line in lines]
    assert said[:4] == said[4:8]  # of the training part, then of the held-out part
    assert said[0] == "1 file left out: 1 of another type (first: JPEGImages/notes.txt)"
    orientation = "EXIF orientation 3"
    assert said[1] == (
        f"{TURNED}: 5 (Annotations/00.xml: {orientation}, Annotations/01.xml: {orientation}, "
        f"Annotations/02.xml: {orientation} and 2 more files)"
    )
    assert said[2].startswith("annotation that states another image size, used: 7 (Annotations/05")
    assert said[3].startswith("object of an unknown class, dropped: 12 (JPEGImages/00.png: dog0, ")
    assert [line.split(":")[0] for line in said[8:]] == ["picture that is also trained on"]
