"""WikiText-103: articles, official files and archive, and the TFDS dataset made from them."""

import tempfile
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import wikitext
from train.data.documents import corpora
from train.data.prepared import Texts, open_dataset
from train.data.text import TextData
from train.data.wikitext103 import WikiText103, prepare
from train.errors import BadInput

FIRST = " \n = First = \n \n a b <unk> \n \n = = Part = = \n \n c \n = not one = \n d \n"
SECOND = " \n = Second ( it ) = \n \n é @-@ f \n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three official files, short ones."""
    for name, text in (("train", FIRST + SECOND), ("valid", SECOND), ("test", FIRST)):
        (tmp_path / f"wiki.{name}.tokens").write_text(text, encoding="utf-8")
    return tmp_path


def test_articles_begin_at_headings_of_the_first_level():
    found = list(wikitext.articles(FIRST + SECOND))
    assert found == [("First", FIRST), ("Second ( it )", SECOND)]
    assert list(wikitext.articles("no heading")) == [("", "no heading")]


def test_line_ends_of_windows_are_line_ends():
    crlf = (FIRST + SECOND).replace("\n", "\r\n")
    found = [title for title, _ in wikitext.articles(crlf)]
    assert found == ["First", "Second ( it )"]


@given(text=st.text(alphabet=" \r\n=ab", max_size=60))
def test_articles_make_up_the_file(text: str):
    assert "".join(article for _, article in wikitext.articles(text)) == text


def test_the_official_files_have_their_articles_and_words(shared: Path):
    for name, words in (("valid", 217_646), ("test", 245_569)):
        text = (shared / "data" / "wikitext-103" / f"wiki.{name}.tokens").read_text(
            encoding="utf-8"
        )
        assert len(list(wikitext.articles(text))) == 60
        assert len(text.split()) + text.count("\n") == words


def test_the_dataset_has_the_articles_in_order(folder: Path, tmp_path: Path):
    cache = prepare(folder, tmp_path / "cache", note=lambda _: None)
    assert prepare(folder, tmp_path / "cache", note=pytest.fail) == cache
    builder = open_dataset("wiki_text103", cache)
    assert builder.info.full_name == "wiki_text103/tokens/1.0.0"
    assert list(builder.info.splits) == ["train", "validation", "test"]
    assert list(Texts(builder, "train", "text")) == [FIRST, SECOND]
    assert list(Texts(builder, "train[50%:]", "title")) == ["Second ( it )"]
    source = tfds.data_source(
        "wiki_text103/tokens",
        split="validation",
        data_dir=cache,
        builder_kwargs={"file_format": "array_record"},
    )
    assert source[0]["text"] == SECOND.encode()


def test_an_archive_is_read_as_it_is(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "wikitext-103-raw-v1.zip", "w") as archive:
        for name, text in (("train", FIRST), ("valid", SECOND), ("test", SECOND)):
            archive.writestr(f"wikitext-103-raw/wiki.{name}.raw", text)
    assert wikitext.which(tmp_path) == "raw"
    builder = WikiText103(data_dir=tmp_path / "out", config="raw", file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(tmp_path))
    builder.download_and_prepare(download_config=config)
    assert list(Texts(builder, "train", "text")) == [FIRST]
    (tmp_path / "wikitext-103-raw-v1.zip").write_bytes(b"PK")
    with pytest.raises(BadInput, match="is not WikiText-103's archive"):
        wikitext.read(tmp_path / "wikitext-103-raw-v1.zip", "raw", "train")


@pytest.fixture
def incomplete(folder: Path) -> Path:
    """The official files without the large one."""
    (folder / "wiki.train.tokens").unlink()
    return folder


def test_without_the_training_file_it_says_how_to_train_on_other_text(incomplete: Path):
    data = TextData(source="wikitext103", path=incomplete, cache=incomplete / "cache")
    message = r"has no wiki\.train\.tokens.*--data\.path CORPUS --data\.validation .*valid\.tokens"
    with pytest.raises(BadInput, match=message):
        corpora(data, note=pytest.fail)


def test_a_folder_without_the_files_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"no WikiText-103: put wiki\.train\.tokens"):
        wikitext.which(tmp_path)


def test_a_file_that_is_not_text_is_one_line(folder: Path):
    (folder / "wiki.train.tokens").write_bytes(FIRST.encode() + b"\xff")
    data = TextData(source="wikitext103", path=folder, cache=folder / "cache")
    with pytest.raises(BadInput, match=r"wiki\.train\.tokens is not text: byte 0xff at offset"):
        corpora(data, note=lambda _: None)


# The content of a file in a generated folder; None: no such file.
STATES: dict[str, bytes | None] = {
    "good": FIRST.encode(),
    "marked": b"\xef\xbb\xbf" + FIRST.encode(),
    "empty": b"",
    "blank": b" \n",
    "cut": SECOND.encode()[: SECOND.encode().index(b"\xc3") + 1],
    "zero": b"a\0b",
    "none": None,
}
OFFICIAL = [f"wiki.{split}.{form}" for form in ("tokens", "raw") for split in ("train", "valid")]


@settings(max_examples=40)
@given(
    files=st.fixed_dictionaries({name: st.sampled_from(list(STATES)) for name in OFFICIAL}),
    archived=st.sampled_from(["", "whole", "damaged"]),
    others=st.sets(st.sampled_from(["._wiki.train.tokens", "README", "wiki.train.tokens.bak"])),
    linked=st.booleans(),
)
def test_generated_folders_are_read_as_by_the_slow_rule(
    files: dict[str, str], archived: str, others: set[str], linked: bool
):
    with tempfile.TemporaryDirectory() as temporary:
        root, place = Path(temporary), Path(temporary) / "files"
        place.mkdir()
        for name in others:
            (place / name).write_bytes(b"x")
        for name, state in files.items():
            content = STATES[state]
            if content is not None:
                (root / name if linked else place / name).write_bytes(content)
                if linked:
                    (place / name).symlink_to(root / name)
        archive = place / "wikitext-103-v1.zip"
        if archived:
            with zipfile.ZipFile(archive, "w") as opened:
                for split in ("train", "valid"):
                    opened.writestr(f"wikitext-103/wiki.{split}.tokens", SECOND)
            if archived == "damaged":
                archive.write_bytes(archive.read_bytes()[:-30])
        present = {name: STATES[state] for name, state in files.items() if STATES[state]}
        forms = [f for f in ("tokens", "raw") if any(name.endswith(f) for name in present)]
        forms = ["tokens"] if archived and "tokens" not in forms else forms
        if not forms:
            with pytest.raises(BadInput, match="no WikiText-103: put"):
                wikitext.which(place)
            return
        assert wikitext.which(place) == forms[0]
        own = {name: x for name, x in present.items() if name.endswith(forms[0])}
        sources = wikitext.sources(place, forms[0])
        assert {"train", "validation"} & {*sources} == (
            {"train" if ".train." in name else "validation" for name in own}
            or {"train", "validation"}
        )
        for split, file in sources.items():
            content = own.get(file.name) if own else SECOND.encode()
            if split == "test":
                continue
            if (file == archive and archived == "damaged") or content in (
                STATES["blank"], STATES["cut"], STATES["zero"],
            ):  # fmt: skip
                with pytest.raises(BadInput, match=file.name):
                    wikitext.read(file, forms[0], split)
            else:
                assert content is not None
                assert wikitext.read(file, forms[0], split) == content.decode("utf-8-sig")
