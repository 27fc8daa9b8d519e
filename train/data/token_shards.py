"""Tokens in published shards (`fineweb_train_000001.bin`): read in order, not copied.

A shard is 256 int32 (20240520, version 1, number of tokens, zeros), then its tokens as uint16, all
little-endian. The files of the training tokens have `train` in their name, those of the validation
tokens `val`, in upper or lower case.
"""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.cache import Note, note
from train.data.folders import describe, list_files
from train.errors import BadInput, require

MAGIC, VERSION, HEADER = 20240520, 1, 256
VALIDATION_TOKENS = 10_485_760  # the benchmark evaluates on the first so many
END_OF_TEXT = 50256  # in the vocabulary of GPT-2, which the shards are encoded in


class Shards:
    """The tokens of some shards, one after the other: `size`, and slices as arrays.

    Raises:
        BadInput: a file is not a shard, or is shorter than it states.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_shard(folder / "a_train_1.bin", [1, 2, 3])
        >>> write_shard(folder / "a_train_2.bin", [4, 5])
        >>> Shards(sorted(folder.glob("*.bin")))[1:4].tolist()
        [2, 3, 4]
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self._tokens = [_opened(file) for file in self.files]
        self._ends = np.cumsum([len(tokens) for tokens in self._tokens])
        self.size = int(self._ends[-1])

    def __getitem__(self, key: slice) -> np.ndarray:
        start, stop, _ = key.indices(self.size)
        first, last = np.searchsorted(self._ends, [start, max(stop - 1, start)], side="right")
        parts = []
        for i in range(first, min(last, len(self._tokens) - 1) + 1):
            offset = self._ends[i] - len(self._tokens[i])
            parts.append(self._tokens[i][max(start - offset, 0) : max(stop - offset, 0)])
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)

    @property
    def fingerprint(self) -> str:
        """Changes with the number, names, sizes or first tokens of the shards."""
        found = zlib.crc32(b"")
        for file, tokens in zip(self.files, self._tokens, strict=True):
            found = zlib.crc32(f"{file.name} {len(tokens)}".encode(), found)
            found = zlib.crc32(tokens[:4096].tobytes(), found)
        return f"{found:08x}"


class Beginning(NamedTuple):
    """The first tokens of a stream."""

    stream: Shards
    size: int

    def __getitem__(self, key: slice) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        start, stop, _ = key.indices(self.size)
        return self.stream[start:stop]


class Numbers:
    """Tokens as the numbers that they are, for shards whose tokenizer was not given.

    Example:
        >>> Numbers().encode("The 5 and 17"), Numbers().decode([5, 17])
        ([5, 17], '5 17')
    """

    vocab_size = END_OF_TEXT + 1
    end_of_text = END_OF_TEXT
    fingerprint = "numbers"

    def encode(self, text: str) -> list[int]:
        """The numbers in a text."""
        return [int(number) for number in re.findall(r"\d+", text)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The numbers, with spaces."""
        return " ".join(map(str, tokens))

    def json(self) -> None:
        """There is no `tokenizer.json`."""


def open_shards(folder: Path | None, *, note: Note = note) -> tuple[Shards, Beginning]:
    """The training tokens in a folder, and the beginning of its validation tokens.

    Args:
        folder: shards at any depth in the order of their names; see `train.data.folders`.
        note: gets a line about files that are left out.

    Raises:
        BadInput: there are no such files, or one of them is not a shard.
    """
    require(folder is not None, "data.source=shards needs --data.path, the folder of the shards")
    assert folder is not None
    listed = list_files(folder, (".bin",))
    parts: dict[str, list[Path]] = {"train": [], "val": []}
    left_out = listed.left_out
    for file in listed.files:
        kinds = [part for part in parts if part in file.name.lower()]
        require(len(kinds) < 2, f"{file} has both train and val in its name; rename it")
        if kinds:
            parts[kinds[0]].append(file)
        else:
            left_out.append(("without train or val in the name", str(file.relative_to(folder))))
    said = describe(left_out)
    for part, files in parts.items():
        require(
            bool(files),
            f"data.path={folder} holds no shard of {part} tokens; put files such as "
            f"fineweb_{part}_000000.bin there{'; ' if said else ''}{said}",
        )
    if said:
        note(f"data.path={folder}: {said}")
    training, held_out = (Shards(files) for files in parts.values())
    return training, Beginning(held_out, min(held_out.size, VALIDATION_TOKENS + 1))


def write_shard(path: Path, tokens: Iterable[int]) -> None:
    """Writes a shard."""
    array = np.asarray(list(tokens), "<u2")
    header = np.zeros(HEADER, "<i4")
    header[:3] = MAGIC, VERSION, len(array)
    path.write_bytes(header.tobytes() + array.tobytes())


def _opened(file: Path) -> np.ndarray:
    """The tokens of a shard, in the file."""
    try:
        header = np.fromfile(file, "<i4", HEADER)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from error
    known = len(header) == HEADER and (header[0], header[1]) == (MAGIC, VERSION)
    require(known, f"{file} is not a shard of tokens: it does not begin with {MAGIC}, {VERSION}")
    tokens = int(header[2])
    held = (file.stat().st_size - 4 * HEADER) // 2
    require(
        0 < tokens <= held, f"{file} states {tokens:,} tokens and holds {held:,}: it is cut off"
    )
    return np.memmap(file, "<u2", "r", offset=4 * HEADER, shape=(tokens,))
