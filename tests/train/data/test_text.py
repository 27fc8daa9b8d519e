"""Text: reading, the held-out split, windows, and the order of batches."""

import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data.text import TextData, embedded_text, read_text, split
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
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt.xz").write_bytes(lzma.compress("dritté".encode()))
    (tmp_path / "notes.md").write_text("not read")
    assert read_text(tmp_path) == "first\n\nsecond\n\ndritté".encode()
    assert read_text(tmp_path / "b.txt") == b"second"
    assert read_text(tmp_path / "notes.md") == b"not read"
    assert read_text(tmp_path / "a.txt.gz") == b"first"


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
