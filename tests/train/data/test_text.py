"""Text: reading, the held-out split, windows, and the order of batches."""

import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train.data.text as text_module
from train.data.text import TextData, embedded_text, read_pieces, read_text, split
from train.data.windows import Windows, evaluation_windows, training_batches
from train.errors import BadInput


def test_the_embedded_text_is_the_same_each_time_and_repeats_no_paragraph():
    text = embedded_text()
    assert text == embedded_text()
    assert len(text) > 300_000
    paragraphs = text.decode().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))
    assert b'"while" statement' in text


def test_no_paragraph_of_the_held_out_text_was_trained_on():
    training, held_out = split(embedded_text(), TextData())
    known = training.data.tobytes().decode(errors="replace")
    paragraphs = held_out.data.tobytes().decode(errors="replace").split("\n\n")[1:]
    repeated = [p for p in paragraphs if len(p) > 80 and p in known]
    assert len(paragraphs) > 50
    assert not repeated


def test_files_and_folders_are_read_as_text(tmp_path: Path):
    (tmp_path / "b.TXT").write_text("second")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt.xz").write_bytes(lzma.compress("dritté".encode()))
    (tmp_path / "notes.md").write_text("not read")
    notes: list[str] = []
    assert read_text(tmp_path, note=notes.append) == "first\n\nsecond\n\ndritté".encode()
    assert len(notes) == 1
    assert notes[0].endswith("1 file left out: 1 of another type (first: notes.md)")
    assert read_text(tmp_path / "b.TXT") == b"second"
    assert read_text(tmp_path / "notes.md") == b"not read"
    assert read_text(tmp_path / "a.txt.gz") == b"first"


def test_system_files_are_ignored_and_empty_ones_left_out(tmp_path: Path):
    for name in ("a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/._a.txt", "._a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n\n  \n")
    notes: list[str] = []
    assert read_text(tmp_path, note=notes.append) == b"text"
    assert notes == [
        f"data.path={tmp_path}: 2 files left out: 2 empty (first: blank.txt)",
    ]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(BadInput, match=r"holds no text in files.*2 files left out: 2 empty"):
        read_text(tmp_path)


def test_a_byte_order_mark_is_not_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbf")
    assert read_text(tmp_path / "a.txt") == "one \ufeff".encode()


@given(
    text=st.text(st.sampled_from("a\n \réß我👩\ufeff"), min_size=1).filter(
        lambda t: not t.isspace()
    ),
    at_once=st.integers(1, 9),
)
def test_pieces_of_a_file_are_its_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, at_once: int
):
    file = tmp_path_factory.mktemp("text") / "a.txt.gz"
    file.write_bytes(gzip.compress(text.encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_AT_ONCE", at_once)
        found = list(read_pieces(file))
    assert "".join(piece for piece, _ in found) == text.removeprefix("\ufeff")
    assert [first for _, first in found] == ([True] + [False] * len(found))[: len(found)]


@pytest.mark.parametrize("at_once", [2, 1 << 20])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\t ", "a.txt is empty"),
        ("a.txt", b"abc\xff\xfed", "byte 0xff at offset 3 is not valid UTF-8"),
        ("a.txt", b"ab\xc3", "byte 0xc3 at offset 2 is not valid UTF-8"),
        ("a.txt", "éa\0b".encode(), "a zero byte at offset 3"),
        ("a.txt", "text".encode("utf-16"), "byte 0xff at offset 0 is not valid UTF-8"),
        ("a.txt.gz", b"not compressed", "cannot read .*a.txt.gz: Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(b"text" * 99, mtime=0)[:-9],
            "cannot read .*a.txt.gz: Compressed file",
        ),
        ("a.txt.XZ", b"not compressed", "cannot read .*a.txt.XZ: Input format"),
    ],
)
def test_a_file_that_is_not_text_is_one_line(
    name: str, content: bytes, message: str, at_once: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(text_module, "_AT_ONCE", at_once)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_text(tmp_path / name)


@pytest.mark.parametrize(
    ("case", "read", "said"),
    [
        ("hidden", "a.txt", ""),
        ("apple", "a.txt", ""),
        ("upper_mixed", "B.TXT a.txt", "2 files left out: 2 of another type (first: c.text)"),
        ("mixed_ws", "a.txt", "1 file left out: 1 empty (first: b.txt)"),
    ],
)
def test_folders_from_reports(shared: Path, case: str, read: str, said: str):
    folder, notes = shared / "cases" / "text" / case, []
    expected = b"\n\n".join((folder / name).read_bytes() for name in read.split())
    assert read_text(folder, note=notes.append) == expected
    assert notes == ([f"data.path={folder}: {said}"] if said else [])


@pytest.mark.parametrize("case", ["notgz.txt.gz", "trunc.txt.gz", "nul.txt"])
def test_damaged_files_from_reports_are_one_line(shared: Path, case: str):
    with pytest.raises(BadInput, match=case) as error:
        read_text(shared / "cases" / "text" / case)
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(BadInput, match=r"pipe.txt is neither a file nor a folder"):
        read_text(tmp_path / "pipe.txt")


@pytest.mark.parametrize("held_out", [0.05, 0.3])
def test_the_split_covers_the_text_and_shares_no_byte(held_out: float):
    text = bytes(np.random.default_rng(0).integers(1, 128, 1000, dtype=np.uint8))
    training, validation = split(text, TextData(sequence_length=16, held_out=held_out))
    assert training.data.tobytes() + validation.data.tobytes() == text
    assert validation.data.size == round(1000 * held_out)


def test_windows_predict_every_byte_but_the_first_once():
    data = np.arange(100, dtype=np.uint8)
    windows = Windows(data, 9)
    targets = np.concatenate([windows[i][1:] for i in range(len(windows))])
    np.testing.assert_array_equal(targets, data[1:])
    assert all(len(windows[i]) == 10 for i in range(len(windows)))


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 0), (9, 0), (10, 1), (18, 1), (19, 2)])
def test_only_whole_windows_count(size: int, count: int):
    assert len(Windows(np.zeros(size, np.uint8), 9)) == count


def test_a_part_too_short_for_a_window_is_refused():
    with pytest.raises(BadInput, match="longer than the held-out part of the data: 5 of 100 bytes"):
        split(bytes(100), TextData(sequence_length=9))


def test_batches_are_drawn_from_the_seed_and_each_pass_has_every_window_once():
    windows = Windows(np.arange(201, dtype=np.uint8), 10)  # 20 windows, 5 batches a pass
    batches: Any = training_batches(windows, batch_size=4, seed=3)
    starts = [np.concatenate([batches[p * 5 + i][:, 0] for i in range(5)]) for p in range(2)]
    for first_bytes in starts:
        np.testing.assert_array_equal(np.sort(first_bytes), np.arange(0, 200, 10))
    assert not np.array_equal(starts[0], starts[1])
    again = training_batches(windows, batch_size=4, seed=3)
    np.testing.assert_array_equal(batches[7], again[7])
    other = training_batches(windows, batch_size=4, seed=4)
    assert any(not np.array_equal(batches[i], other[i]) for i in range(5))


def test_evaluation_windows_are_spread_evenly():
    windows = Windows(np.arange(101, dtype=np.uint8), 10)
    np.testing.assert_array_equal(evaluation_windows(windows, 5)[:, 0], [0, 20, 40, 60, 80])
    assert evaluation_windows(windows, 256).shape == (10, 11)
