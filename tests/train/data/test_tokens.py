"""Tokens on disk: the same as in memory, wherever they are cut."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data.tokenizer_cases import TEXT, subwords
from train.data import parts, tokens
from train.data.cache import cached
from train.data.parts import Piece, pieces
from train.data.tokenizers import Bytes, Subwords, train_bpe
from train.data.tokens import Tokens, lost_bytes, write_tokens

DOCUMENTS = ["one two\nthree\n", "", "four", "five six " * 40, "é"]


def stream() -> list[Piece]:
    """The documents in pieces."""
    return [piece for document in DOCUMENTS for piece in pieces(document, 7)]


@pytest.fixture(scope="module")
def bpe() -> Subwords:
    """A small vocabulary."""
    return train_bpe(DOCUMENTS, vocab_size=280)


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of 8 tokens, 3 in a file, and batches of 20 characters."""
    monkeypatch.setattr(tokens, "RECORD", 8)
    monkeypatch.setattr(tokens, "SHARD", 3)
    monkeypatch.setattr(tokens, "_BATCH", 20)
    monkeypatch.setattr(parts, "PART", 10)


@pytest.mark.usefixtures("small_records")
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_slices_are_those_of_the_joined_documents(kind: str, bpe: Subwords, tmp_path: Path):
    tokenizer = Bytes() if kind == "bytes" else bpe
    write_tokens(tmp_path, stream(), tokenizer, note=pytest.fail)
    found = Tokens(tmp_path)
    separator = [10, 10] if tokenizer.end_of_text is None else [0]
    joined, starts = [], []
    for document in filter(None, DOCUMENTS):
        starts.append(len(joined))
        joined += separator + tokenizer.encode(document)
    assert len(list(tmp_path.glob("*.array_record"))) > 1
    assert found.size == len(found) == len(joined)
    assert found.starts.tolist() == starts
    assert found[0:1].dtype == (np.uint8 if kind == "bytes" else np.uint16)
    generator = np.random.default_rng(0)
    for start, stop in [(0, found.size), (7, 9), (8, 16), (5, 5), (found.size - 1, found.size + 5)]:
        np.testing.assert_array_equal(found[start:stop], joined[start:stop])
    for start, stop in np.sort(generator.integers(0, found.size, (30, 2)), axis=1):
        np.testing.assert_array_equal(found[start:stop], joined[start:stop])


def test_counts_are_those_of_the_text(bpe: Subwords, tmp_path: Path):
    write_tokens(tmp_path, stream(), bpe, note=pytest.fail)
    counts = Tokens(tmp_path).counts
    assert counts.bytes == len("".join(DOCUMENTS).encode())
    assert counts.words == 3 + 2 + 1 + 80 + 1  # two line ends among them
    assert counts.documents == 4
    assert counts.lost == 0


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "llama", "unigram"])
def test_a_tokenizer_that_keeps_text_loses_nothing(kind: str):
    # The two of SentencePiece know the characters of their training text alone.
    text = TEXT if kind in ("gpt2", "roberta") else "the square of one two see so on "
    assert lost_bytes(text, subwords(kind)) == 0


def test_lost_characters_are_counted_by_their_bytes():
    assert lost_bytes("the square", subwords("dropping")) == 0
    lost = "é 北京"  # with a space: the two around a lost word come back as one
    assert lost_bytes("the café 北京 the", subwords("dropping")) == len(lost.encode())
    assert lost_bytes("So, is IT", subwords("bert")) == 3  # upper case
    assert lost_bytes("e\u0301", subwords("qwen")) == 3  # one composed character comes back


def test_the_lost_share_is_that_of_the_text(tmp_path: Path):
    text = "the square is é so" * 10
    write_tokens(tmp_path, pieces(text), subwords("dropping"), note=pytest.fail)
    assert Tokens(tmp_path).counts.lost == pytest.approx(20 / len(text.encode()), rel=0.1)


def test_a_stream_without_text_has_no_tokens(tmp_path: Path):
    write_tokens(tmp_path, iter(()), Bytes(), note=pytest.fail)
    found = Tokens(tmp_path)
    assert found.size == len(found[0:5]) == 0


DAMAGES: dict[str, Callable[[Path, int], object]] = {
    "missing": lambda file, at: file.unlink(),
    "empty": lambda file, at: file.write_bytes(b""),
    "cut": lambda file, at: file.write_bytes(file.read_bytes()[:-at]),
    "longer": lambda file, at: file.write_bytes(file.read_bytes() + b"x" * at),
    "changed": lambda file, at: file.write_bytes(
        bytes(byte ^ (i == at % file.stat().st_size) for i, byte in enumerate(file.read_bytes()))
    ),
    "folder": lambda file, at: (file.unlink(), file.mkdir()),
    "broken link": lambda file, at: (file.unlink(), file.symlink_to("gone")),
    "beside": lambda file, at: file.with_name(f"x{file.name}").write_bytes(b"x" * at),
    "hidden beside": lambda file, at: file.with_name(f"._{file.name}").write_bytes(b"x" * at),
}


@settings(max_examples=15)
@given(
    documents=st.lists(st.text("aé \n", min_size=1, max_size=30), min_size=1, max_size=4),
    file=st.integers(0, 20),
    kind=st.sampled_from(list(DAMAGES)),
    at=st.integers(1, 40),
)
def test_a_damaged_folder_of_tokens_is_made_again(
    documents: list[str], file: int, kind: str, at: int
):
    expected = [token for text in documents for token in b"\n\n" + text.encode()]
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        pieces = [Piece(text, first=True) for text in documents]
        write_tokens(folder, pieces, Bytes(), note=pytest.fail)

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        whole = cached(root, "tokens", make, note=pytest.fail)
        assert Tokens(whole)[0 : len(expected)].tolist() == expected
        files = sorted(whole.iterdir())
        DAMAGES[kind](files[file % len(files)], at)
        notes: list[str] = []
        again = Tokens(cached(root, "tokens", make, note=notes.append))
        assert again[0 : len(expected)].tolist() == expected
        assert (len(made), len(notes)) == (2, 1)


def test_equal_texts_give_equal_files(bpe: Subwords, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tokens(tmp_path / name, stream(), bpe, note=pytest.fail)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
