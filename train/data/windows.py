"""Windows of fixed length over a stream of tokens, and batches of windows."""

from dataclasses import dataclass
from typing import Any, Protocol

import grain
import jax
import numpy as np

from train.distributed import own_batches
from train.errors import require


class Stream(Protocol):
    """Tokens, in memory or on disk."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        ...

    def __getitem__(self, key: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Windows:
    """Random access to the windows of a text: window `i` is tokens `[i n, i n + n]`, `n + 1` long.

    Adjacent windows share one token, the last target of one and the first input of the next. So
    every token except the first is predicted once; an incomplete window at the end is left out.
    """

    data: Stream
    length: int  # n, in tokens

    def __len__(self) -> int:
        return max(self.data.size - 1, 0) // self.length

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(index) * self.length
        return self.data[start : start + self.length + 1]


@dataclass(frozen=True)
class PackedWindows:
    """The same windows, with the documents of each token.

    Documents follow each other without padding, and one may continue in the next row. Besides
    `tokens`, an example has, for each of its `n` inputs, `segment_ids` (the document within the
    row, from 0) and `positions` (within that document, or from the beginning of the row if the
    document began before it).

    Example:
        >>> rows = PackedWindows(np.arange(9), starts=np.array([0, 3, 5]), length=4)
        >>> rows[0]["segment_ids"].tolist(), rows[0]["positions"].tolist()
        ([0, 0, 0, 1], [0, 1, 2, 0])
        >>> rows[1]["segment_ids"].tolist(), rows[1]["positions"].tolist()
        ([0, 1, 1, 1], [0, 0, 1, 2])
    """

    data: Stream
    starts: np.ndarray  # sorted positions where documents begin, the first is 0
    length: int

    def __len__(self) -> int:
        return len(Windows(self.data, self.length))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = int(index) * self.length
        begin, end = np.searchsorted(self.starts, [first, first + self.length], side="right")
        # Where the documents of the row begin; the first may have begun before it.
        inside = np.append(0, self.starts[begin:end] - first)
        places = np.arange(self.length)
        segments = np.searchsorted(inside[1:], places, side="right")
        return {
            "tokens": Windows(self.data, self.length)[index],
            "segment_ids": segments.astype(np.int32),
            "positions": (places - inside[segments]).astype(np.int32),
        }


Examples = Windows | PackedWindows


def require_windows(windows: Examples, part: str, unit: str) -> None:
    """Raises `BadInput` if a part of the data is too short for one window."""
    require(
        len(windows) >= 1,
        f"data.sequence_length={windows.length} is longer than the {part} part of the data: "
        f"{windows.data.size:,} {unit}, and one more than the sequence length is needed; shorten "
        "the sequence, give more text, or change what is held out",
    )


def training_batches(
    windows: Examples, *, batch_size: int, seed: int, shuffled: bool = True
) -> grain.MapDataset:
    """An endless sequence of batches of shuffled windows: element `k` is for step `k`.

    Every pass over the text has its own order, drawn from the seed. With several processes, each
    process reads its own part of every batch.

    Args:
        windows: the training part.
        batch_size: windows per batch, over all processes.
        seed: of the order.
        shuffled: False keeps the order of the text.

    Returns:
        A dataset of tokens `[batch_size / processes, sequence_length + 1]`; packed: of
        dictionaries that have `segment_ids` and `positions` too.
    """
    source: Any = windows
    ordered = grain.MapDataset.source(source).seed(seed)
    ordered = ordered.shuffle() if shuffled else ordered
    return own_batches(ordered.repeat(), batch_size)


def evaluation_windows(windows: Examples, limit: int | None) -> Any:
    """At most `limit` windows (None: all), evenly spaced, stacked: `[count, length + 1]`."""
    count = len(windows) if limit is None else min(len(windows), limit)
    chosen = [windows[i * len(windows) // count] for i in range(count)]
    return jax.tree.map(lambda *rows: np.stack(rows), *chosen)
