"""Text as bytes: where it comes from, its held-out split, and windows of fixed length."""

import gzip
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np

from train.errors import BadInput, require

READERS: dict[str, Callable[[Path], bytes]] = {
    ".xz": lambda path: lzma.decompress(path.read_bytes()),
    ".gz": lambda path: gzip.decompress(path.read_bytes()),
}
FOLDER_SUFFIXES = (".txt", ".txt.xz", ".txt.gz")


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Where the text comes from, and how it is cut."""

    path: Path | None = None
    """Text file (UTF-8, also .xz or .gz), or a folder of .txt, .txt.xz and .txt.gz files; None:
    the language reference inside every CPython."""

    sequence_length: int = 256
    """Length of a training example, in bytes."""

    held_out: float = 0.05
    """Share of the text, taken from its end, that is kept for evaluation, 0 .. 1."""

    evaluation_sequences: int = 256
    """Largest number of held-out sequences that an evaluation reads, evenly spread."""

    def __post_init__(self) -> None:
        require(
            self.sequence_length >= 1,
            f"data.sequence_length={self.sequence_length} must be at least 1",
        )
        require(0 < self.held_out < 1, f"data.held_out={self.held_out} must lie between 0 and 1")
        require(
            self.evaluation_sequences >= 1,
            f"data.evaluation_sequences={self.evaluation_sequences} must be at least 1",
        )


@dataclass(frozen=True)
class Windows:
    """Random access to the windows of a text: window `i` is bytes `[i n, i n + n]`, `n + 1` long.

    Neighbours share one byte, the target of one and the input of the next: every byte but the
    first is predicted once, and a rest shorter than a window is left out.
    """

    data: np.ndarray  # uint8, shape [bytes]
    length: int  # n, in bytes

    def __len__(self) -> int:
        return max(self.data.size - 1, 0) // self.length

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(index) * self.length
        return self.data[start : start + self.length + 1]


def embedded_text() -> bytes:
    """The language reference inside CPython, topics in sorted order, repeated paragraphs once.

    Topics quote each other (about a fifth of the text), and a paragraph of the held-out part that
    was trained on would measure memory; hence every paragraph is kept where it first stands.

    Raises:
        BadInput: a Python that was packaged without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadInput(
            "this Python has no pydoc_data.topics, the embedded text; give a text file with "
            "--data.path"
        ) from None
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return "\n\n".join(dict.fromkeys(text.split("\n\n"))).encode()


def read_text(path: Path | None) -> bytes:
    """Reads the text of a file, of a folder, or the embedded one.

    Args:
        path: a file, a folder (its text files at any depth in sorted order, joined by an empty
            line), or None for `embedded_text`.

    Returns:
        The text, as the UTF-8 bytes it is stored in.

    Raises:
        BadInput: missing, empty, unreadable, or no text; naming the file.
    """
    if path is None:
        return embedded_text()
    require(path.exists(), f"data.path={path} does not exist")
    if not path.is_dir():
        return _read_file(path)
    files = sorted(p for p in path.rglob("*") if p.name.endswith(FOLDER_SUFFIXES) and p.is_file())
    require(bool(files), f"data.path={path} holds no {', '.join(FOLDER_SUFFIXES)} file")
    return b"\n\n".join(_read_file(file) for file in files)


def split(text: bytes, data: TextData) -> tuple[Windows, Windows]:
    """Cuts a text into training and held-out windows; no byte is in both.

    Args:
        text: the whole text.
        data: sequence length and share of the held-out part, which is the end of the text.

    Returns:
        Windows of the training part and of the held-out part.

    Raises:
        BadInput: a part is too short for one window.

    Example:
        >>> training, held_out = split(bytes(100), TextData(sequence_length=9, held_out=0.2))
        >>> len(training), len(held_out), len(training[0])
        (8, 2, 10)
    """
    array = np.frombuffer(text, np.uint8)
    cut = array.size - round(array.size * data.held_out)
    training = Windows(array[:cut], data.sequence_length)
    held_out = Windows(array[cut:], data.sequence_length)
    for part, windows in (("training", training), ("held-out", held_out)):
        require(
            len(windows) >= 1,
            f"data.sequence_length={data.sequence_length} is longer than the {part} part of the "
            f"data: {windows.data.size} of {array.size} bytes, and one more than the sequence "
            "length is needed; shorten the sequence, give more text, or change data.held_out",
        )
    return training, held_out


def training_batches(windows: Windows, *, batch_size: int, seed: int) -> grain.MapDataset:
    """Batches of shuffled windows without end: element `k` is the batch of step `k`.

    Every pass over the text has its own order, drawn from the seed. With several processes, each
    reads its own part of every batch.

    Args:
        windows: the training part.
        batch_size: windows a batch, over all processes.
        seed: of the order.

    Returns:
        A dataset of uint8 `[batch_size / processes, sequence_length + 1]`.
    """
    ordered = grain.MapDataset.source(windows).seed(seed).shuffle().repeat()
    mine = ordered[jax.process_index() :: jax.process_count()]
    return mine.batch(batch_size // jax.process_count(), drop_remainder=True)


def evaluation_windows(windows: Windows, limit: int) -> np.ndarray:
    """At most `limit` windows, evenly spread, as one uint8 array `[count, length + 1]`."""
    count = min(len(windows), limit)
    return np.stack([windows[i * len(windows) // count] for i in range(count)])


def _read_file(path: Path) -> bytes:
    """The bytes of one text file, decompressed by its suffix."""
    try:
        data = READERS.get(path.suffix, Path.read_bytes)(path)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    require(bool(data.strip()), f"{path} is empty")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is no text: byte {data[error.start]:#04x} at offset {error.start} is not "
            "valid UTF-8"
        ) from None
    nul = data.find(0)
    require(nul < 0, f"{path} is no text: a zero byte at offset {nul}")
    return data
