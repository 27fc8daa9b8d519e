"""Which files belong to a folder or an archive: known cases, and a slow rewrite of the rule."""

import io
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from train.data.folders import describe, list_archive, list_files
from train.errors import BadInput

SUFFIXES = (".txt", ".txt.xz")
IGNORED = (
    *(".DS_Store", "._a.txt", ".hidden.txt", ".git/a.txt", ".ipynb_checkpoints/a-checkpoint.txt"),
    *("__MACOSX/._a.txt", "__MACOSX/a.txt", "Thumbs.db", "desktop.ini", "sub/Desktop.ini"),
    *("$RECYCLE.BIN/a.txt", "System Volume Information/a.txt", "@eaDir/a.txt", "Icon\r"),
)


def write(folder: Path, *names: str, text: str = "text") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder: Path, **options: bool) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in list_files(folder, SUFFIXES, **options).files]


def test_hidden_and_system_files_are_ignored_and_not_counted(tmp_path: Path):
    write(tmp_path, *IGNORED, "a.txt", "sub/b.txt", "not.hidden.txt")
    found = list_files(tmp_path, SUFFIXES)
    assert names(tmp_path) == ["a.txt", "not.hidden.txt", "sub/b.txt"]
    assert found.left_out == []
    assert describe(found.left_out) == ""


def test_a_folder_with_a_hidden_name_or_parent_is_read(tmp_path: Path):
    write(tmp_path / ".cache" / "text", "a.txt")
    assert names(tmp_path / ".cache") == ["text/a.txt"]


def test_suffixes_match_in_any_case_and_files_are_sorted_by_the_parts_of_their_names(
    tmp_path: Path,
):
    write(tmp_path, "b/a.TXT", "b.txt", "b-c/x.Txt.XZ", "a.txt.xz")
    assert names(tmp_path) == ["a.txt.xz", "b/a.TXT", "b-c/x.Txt.XZ", "b.txt"]
    assert names(tmp_path, recursive=False) == ["a.txt.xz", "b.txt"]


def test_what_is_left_out_is_counted_in_one_line_that_names_the_first(tmp_path: Path):
    write(tmp_path, "a.txt", "README", "notes\nof me.pdf", "sub/x.md")
    write(tmp_path, "sub/empty.txt", "empty.pdf", text="")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "self.txt").symlink_to("self.txt")
    (tmp_path / "again.txt").symlink_to("a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    found = list_files(tmp_path, SUFFIXES)
    assert found.files == [tmp_path / "a.txt"]
    assert describe(found.left_out) == (
        "9 files left out: 5 of another type (first: README), 1 read already under another name "
        "(first: again.txt), 2 behind a broken link (first: gone.txt), 1 empty (first: "
        "sub/empty.txt)"
    )
    assert describe([("empty", "notes\nof me")]) == "1 file left out: 1 empty (first: notes of me)"


def test_links_to_folders_are_followed_once(tmp_path: Path):
    outside, corpus = tmp_path / "outside", tmp_path / "corpus"
    write(outside, "x.txt", "deep/y.txt")
    write(corpus, "a.txt", "sub/b.txt")
    (corpus / "link").symlink_to(outside)
    (corpus / "same").symlink_to(outside)
    (corpus / "shallow").symlink_to("sub")
    (corpus / "parent").symlink_to("..")
    (corpus / "sub" / "loop").symlink_to(corpus)
    (outside / "back").symlink_to(corpus)
    (outside / "deep" / "up").symlink_to(outside)
    assert names(corpus) == ["a.txt", "link/deep/y.txt", "link/x.txt", "sub/b.txt"]
    assert list_files(corpus, SUFFIXES).left_out == []
    (tmp_path / "alias").symlink_to(corpus)
    assert names(tmp_path / "alias") == names(corpus)


def test_a_link_gives_the_name_where_the_file_itself_has_another_suffix(tmp_path: Path):
    write(tmp_path, "blobs/1234")
    (tmp_path / "a.txt").symlink_to("blobs/1234")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(BadInput, match=r"cannot read the folder .*locked: Permission denied"):
        list_files(tmp_path, SUFFIXES)


def test_a_folder_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match=r"cannot read the folder .*gone: No such file"):
        list_files(tmp_path / "gone", SUFFIXES)


def test_archives_follow_the_same_rule(tmp_path: Path):
    members = [*IGNORED, "b/1.TXT", "./a/1.txt", "c\\2.txt", "README", "b/0.txt"]
    sizes = dict.fromkeys(members, b"text") | {"b/0.txt": b""}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("b.txt")
        for name, data in sizes.items():
            archive.writestr(name, data)
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "b/1.TXT")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name, data in sizes.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("link.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "b/1.TXT"
        archive.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip") as a, tarfile.open(tmp_path / "a.tar.gz") as b:
        for archive in (a, b):
            found = list_archive(archive, SUFFIXES)
            assert found.files == ["./a/1.txt", "b/1.TXT", "c\\2.txt"]
            assert describe(found.left_out) == (
                "3 files left out: 1 of another type (first: README), 1 empty (first: b/0.txt), "
                "1 stored as a link (first: link.txt)"
            )


def slow_listing(folder: Path) -> tuple[list[str], set[tuple[str, str]]]:
    """The rule, by all names of all files: what is read, and what is left out and why."""
    candidates: list[tuple[int, list[str], Path]] = []  # links taken, parts, real path

    def visit(at: Path, parts: list[str], links: int, above: list[Path]) -> None:
        for path in at.iterdir():
            name = path.name
            if name.startswith(".") or name.lower() in ("thumbs.db", "__macosx", "desktop.ini"):
                continue
            taken = links + path.is_symlink()
            real = path.resolve() if path.exists() else path
            holder, root = above[-1], above[0]
            if not real.is_dir():
                candidates.append((taken, [*parts, name], real))
            elif real not in [*above, *holder.parents, *root.parents]:
                visit(path, [*parts, name], taken, [*above, real])

    visit(folder, [], 0, [folder.resolve()])
    read: dict[Path, str] = {}
    left_out: set[tuple[str, str]] = set()
    for _, parts, real in sorted(candidates, key=lambda c: c[:2]):
        name = "/".join(parts)
        if not real.exists():
            left_out.add(("behind a broken link", name))
        elif not name.lower().endswith(SUFFIXES):
            left_out.add(("of another type", name))
        elif not real.read_bytes():
            left_out.add(("empty", name))
        else:
            read.setdefault(real, name)
    return sorted(read.values(), key=lambda name: name.split("/")), left_out


FOLDERS = ("", "a", "B", "a/c", "a/.h", "__MACOSX", "a/c/d.txt")
FILES = ("x.txt", "X.TXT", "y.txt.xz", "y.md", "._x.txt", "Thumbs.db", "z.Txt", ".DS_Store")
LINKS = ("l", "0", "m.txt", "B2", ".k")
places = st.sampled_from(FOLDERS)


@given(
    folders=st.sets(places),
    files=st.dictionaries(st.tuples(places, st.sampled_from(FILES)), st.sampled_from(["", "t"])),
    links=st.dictionaries(
        st.tuples(places, st.sampled_from(LINKS)),
        st.tuples(places, st.sampled_from(["", *FILES, *LINKS, "gone", "../..", "../../out"])),
        max_size=5,
    ),
)
@settings(max_examples=150)
@example(set(), {("a/c", "x.txt"): "t"}, {("", "l"): ("a", ""), ("", "0"): ("a/c", "")})
def test_generated_folders_are_listed_as_by_the_slow_rule(
    folders: set[str], files: dict[tuple[str, str], str], links: dict[tuple[str, str], tuple]
):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        write(Path(temporary), "out/o.txt", "out/q/r.TXT", "n.txt")
        for folder in ("", *folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for (folder, name), text in files.items():
            write(root / folder, name, text=text)
        for (folder, name), (to, target) in links.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).symlink_to(root / to / target)
        found = list_files(root, SUFFIXES)
        read, left_out = slow_listing(root)
        assert [path.relative_to(root).as_posix() for path in found.files] == read
        repeated = "read already under another name"
        assert {item for item in found.left_out if item[0] != repeated} <= left_out
        said = {reason for reason, _ in found.left_out} - {repeated}
        assert said == {reason for reason, _ in left_out}
