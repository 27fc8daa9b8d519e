"""Packed rows: every token in its document, and no document sees another."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.windows import PackedWindows, Windows, evaluation_windows, training_batches


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), length=st.integers(1, 8))
def test_every_input_is_in_its_document_at_its_place(lengths: list[int], length: int):
    size = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    document = np.repeat(np.arange(len(lengths)), lengths)
    rows = PackedWindows(np.arange(size), starts, length)
    plain = Windows(np.arange(size), length)
    assert len(rows) == len(plain)
    for i in range(len(rows)):
        row = rows[i]
        np.testing.assert_array_equal(row["tokens"], plain[i])
        inputs = range(i * length, i * length + length)
        first = document[inputs[0]]
        assert row["segment_ids"].tolist() == [document[place] - first for place in inputs]
        assert row["positions"].tolist() == [
            place - max(starts[document[place]], inputs[0]) for place in inputs
        ]


def test_packed_batches_have_the_order_of_plain_ones():
    starts, data = np.array([0, 13, 20]), np.arange(101)
    plain: Any = training_batches(Windows(data, 10), batch_size=4, seed=3)
    packed: Any = training_batches(PackedWindows(data, starts, 10), batch_size=4, seed=3)
    for k in (0, 1, 7):
        assert set(packed[k]) == {"tokens", "segment_ids", "positions"}
        np.testing.assert_array_equal(packed[k]["tokens"], plain[k])
    stacked = evaluation_windows(PackedWindows(data, starts, 10), None)
    assert stacked["tokens"].shape == (10, 11)
    assert stacked["positions"].shape == (10, 10)


def test_the_processes_share_each_batch(monkeypatch: pytest.MonkeyPatch):
    windows = Windows(np.arange(201), 10)
    whole: Any = training_batches(windows, batch_size=4, seed=3)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares: list[Any] = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(training_batches(windows, batch_size=4, seed=3))
    for k in (0, 3, 9):
        together = np.concatenate([share[k] for share in shares])
        np.testing.assert_array_equal(together, whole[k])
