"""Class folders, on disk and in archives: the same images, whatever else is in there."""

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.data.labelled import ImageData, class_folders, read_images
from train.errors import BadInput

SIZE = 2, 3


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", SIZE, level).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder(folder: Path, split: str, members: dict[str, bytes]) -> None:
    (folder / split).mkdir()
    for name, data in members.items():
        (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / split / name).write_bytes(data)


def as_zip(folder: Path, split: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def as_tar(folder: Path, split: str, members: dict[str, bytes]) -> None:
    with tarfile.open(folder / f"{split}.tar.gz", "w:gz") as archive:
        for name, data in reversed(members.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


Write = Callable[[Path, str, dict[str, bytes]], None]
writers = pytest.mark.parametrize("write", [as_folder, as_zip, as_tar])


def read(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """The classes, and class and gray level of each training image."""
    training, _ = read_images(ImageData(path=folder))
    assert training.images.shape[1:] == (SIZE[1], SIZE[0], 3)
    levels = training.images[:, 0, 0, 0].tolist()
    return training.names, [
        (training.names[label], level)
        for label, level in zip(training.labels.tolist(), levels, strict=True)
    ]


@writers
def test_only_images_in_class_folders_are_read_and_the_rest_is_counted(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
):
    members = {
        "dog/0.PNG": png(3),
        "cat/1.png": png(2),
        "cat/0.jpg": png(1),
        "cat/deep/2.png": png(9),
        "cat/.ipynb_checkpoints/0-checkpoint.png": png(4),
        ".ipynb_checkpoints/1.png": png(4),
        "__MACOSX/cat/._0.png": b"mac",
        ".DS_Store": b"mac",
        "cat/Thumbs.db": b"windows",
        "README.txt": b"read me",
        "dog/LICENSE": b"read me too",
        "logo.png": png(5),
        "dog/empty.png": b"",
        "dog/torn.png": png(6)[:40],
    }
    for split in ("train", "test"):
        write(tmp_path, split, members)
    names, found = read(tmp_path)
    assert names == ("cat", "dog")
    assert found == [("cat", 1), ("cat", 2), ("cat", 9), ("dog", 3)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"warning: {tmp_path}/train")
    assert ": 5 files left out: 2 of another type (first: README.txt), " in said[0]
    assert "1 empty (first: dog/empty.png), 1 broken (first: dog/torn.png: " in said[0]
    assert said[0].endswith("1 in no class folder (first: logo.png)")


@writers
def test_folders_around_the_class_folders_do_not_matter(tmp_path: Path, write: Write):
    members = {"cifar/all/cat/1.png": png(1), "cifar/all/dog/1.png": png(2), "x.png": png(7)}
    for split in ("train", "test"):
        write(tmp_path, split, members)
    assert read(tmp_path) == (("cat", "dog"), [("cat", 1), ("dog", 2)])


def test_linked_class_folders_are_read_once(tmp_path: Path):
    for split in ("train", "test"):
        as_folder(tmp_path, split, {"cat/1.png": png(1)})
        as_folder(tmp_path, f"{split}_dogs", {"2.png": png(2)})
        (tmp_path / split / "dog").symlink_to(tmp_path / f"{split}_dogs")
        (tmp_path / split / "puppy").symlink_to("dog")
        (tmp_path / split / "cat" / "loop").symlink_to("..")
    assert read(tmp_path) == (("cat", "dog"), [("cat", 1), ("dog", 2)])


@writers
def test_deep_turned_and_transparent_images_are_decoded_as_everywhere(tmp_path: Path, write: Write):
    deep, turned, clear = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((3, 2), 40 * 257, np.uint16)).save(deep, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3, 2), (50, 50, 50)).save(turned, "PNG", exif=exif)
    Image.new("RGBA", (2, 3), (255, 0, 0, 0)).save(clear, "PNG")
    images = {"deep": deep, "turned": turned, "clear": clear}
    members = {f"{name}/0.png": data.getvalue() for name, data in images.items()}
    for split in ("train", "test"):
        write(tmp_path, split, members)
    assert read(tmp_path)[1] == [("clear", 114), ("deep", 40), ("turned", 50)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no archive"), "cannot read .*train.zip"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot read .*train.zip"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"IHDR", b"JHDR")),
            "cannot read .*train.zip: Bad CRC-32 for file 'cat/0.png'",
        ),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, spoil: Callable[[Path], None], message: str):
    for split in ("train", "test"):
        as_zip(tmp_path, split, {"cat/0.png": png(0), "dog/0.png": png(1)})
    spoil(tmp_path / "train.zip")
    with pytest.raises(BadInput, match=message):
        read(tmp_path)


def test_images_of_different_sizes_are_named(tmp_path: Path):
    other = io.BytesIO()
    Image.new("L", (5, 7)).save(other, "PNG")
    for split in ("train", "test"):
        as_zip(tmp_path, split, {"cat/0.png": png(0), "dog/1.png": other.getvalue()})
    with pytest.raises(BadInput, match=r"dog/1.png has 5 x 7 pixels, cat/0.png 2 x 3"):
        read(tmp_path)


def test_archives_without_class_folders_are_refused(tmp_path: Path):
    for split in ("train", "test"):
        as_zip(tmp_path, split, {"0.png": png(0), "1.png": png(1)})
    with pytest.raises(BadInput, match=r"train\.zip holds no image in a class folder"):
        read(tmp_path)


NAMES = ("1.png", "2.PNG", "._1.png", "x.md", "Thumbs.db", "3.jpg")
PLACES = ("", "cat", "dog", "dog/deep", ".git", "__MACOSX", "cat/.ipynb_checkpoints")


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(NAMES)),
        st.sampled_from(["good", "good", "empty", "bad"]),
    ),
    st.sampled_from([as_folder, as_zip, as_tar]),
    st.sampled_from(["", "outer/"]),
)
def test_generated_class_folders_are_read_as_by_the_slow_rule(
    files: dict[tuple[str, str], str], write: Write, outer: str
):
    contents = {"good": None, "empty": b"", "bad": b"bad"}
    members: dict[str, bytes] = {f"{outer}{name}/0.png": png(0) for name in ("cat", "dog")}
    expected = {("cat", 0): 1, ("dog", 0): 1}
    for level, ((place, name), state) in enumerate(files.items(), start=1):
        data = contents[state]
        members[f"{outer}{place}/{name}" if place else outer + name] = (
            png(level) if data is None else data
        )
        hidden = any(part[0] == "." or part == "__MACOSX" for part in (*place.split("/"), name)
                     if part)  # fmt: skip
        if state == "good" and not hidden and name[0] in "123" and place:
            expected[(place.split("/")[0], level)] = 1
    with tempfile.TemporaryDirectory() as temporary:
        for split in ("train", "test"):
            write(Path(temporary), split, members)
        names, found = read(Path(temporary))
    assert names == ("cat", "dog")
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["1.png"], []),
        (["cat/1.png", "cat/2.png"], ["cat", "cat"]),
        (["a/cat/1.png", "a/cat/2.png"], ["cat", "cat"]),
        (["cat/1.png", "category/1.png"], ["cat", "category"]),
        (["x.png", "a/y.png", "a/cat/1.png", "a/dog/b/1.png"], ["cat", "dog"]),
    ],
)
def test_the_class_is_the_first_folder_that_is_not_shared(paths: list[str], expected: list[str]):
    assert list(class_folders(map(PurePosixPath, paths)).values()) == expected


@pytest.mark.parametrize(
    "case", ["dsstore", "gray", "ipynb", "macosx", "readme", "rootimg", "thumbs"]
)
def test_cases_from_reports(shared: Path, case: str, capsys: pytest.CaptureFixture[str]):
    training, held_out = read_images(ImageData(path=shared / "cases" / "classify" / case))
    assert training.names == held_out.names == ("cat", "dog")
    counts = np.bincount(training.labels).tolist()
    assert counts == ([11, 8] if case == "gray" else [8, 8])
    said = capsys.readouterr().err
    assert ("1 of another type (first: README.txt)" in said) == (case == "readme")
    assert ("1 in no class folder (first: x.png)" in said) == (case == "rootimg")
    assert bool(said) == (case in ("readme", "rootimg"))
