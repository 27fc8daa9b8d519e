"""Tokenized text: array-record files in the cache, with random access."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data.cache import Note
from train.data.parts import Piece
from train.data.subwords import token_dtype
from train.data.tokenizers import Tokenizer
from train.errors import BadInput

RECORD = 4096  # tokens per record: 20 microseconds to read one, measured
SHARD = 1 << 15  # records per file: 256 MiB of uint16
_BATCH = 1 << 21  # characters encoded at once: 400 MB while they are
_SECONDS_BETWEEN_NOTES = 10.0


class Counts(NamedTuple):
    """Sizes of a text, to convert a loss per token into one per byte or per word."""

    tokens: int  # including the one before each document
    bytes: int
    words: int  # separated by white space, and one per line end, as WikiText counts
    documents: int
    lost: float = 0.0  # fraction of the bytes that decoding does not restore, from samples


class Tokens:
    """The tokens of a text on disk: `size`, and slices of them as arrays.

    Example:
        >>> import tempfile
        >>> from train.data.parts import Piece
        >>> from train.data.tokenizers import Bytes
        >>> folder = Path(tempfile.mkdtemp())
        >>> stream = [Piece("one two", True), Piece("three", True)]
        >>> write_tokens(folder, stream, Bytes(), note=print)
        >>> tokens = Tokens(folder)
        >>> bytes(tokens[2:9]), tokens.counts.words, tokens.starts.tolist()
        (b'one two', 3, [0, 9])
    """

    def __init__(self, folder: Path) -> None:
        """Opens what `write_tokens` wrote."""
        record = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        self.dtype = np.dtype(record.pop("dtype"))
        self.counts = Counts(**record)
        self.size = self.counts.tokens
        # Where documents begin, at the token before each.
        self.starts: np.ndarray = np.load(folder / "starts.npy", mmap_mode="r")
        _, source = _array_record()
        files = sorted(map(str, folder.glob("*.array_record")))  # none without text
        self._records: Any = source.ArrayRecordDataSource(files) if files else []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: slice) -> np.ndarray:
        start, stop, step = key.indices(self.size)
        if step != 1 or stop <= start:
            return np.zeros(0, self.dtype)
        first, last = start // RECORD, (stop - 1) // RECORD
        found = self._records.__getitems__(range(first, last + 1))
        tokens = np.frombuffer(b"".join(found), self.dtype)
        return tokens[start - first * RECORD : stop - first * RECORD]


def write_tokens(
    folder: Path, stream: Iterable[Piece], tokenizer: Tokenizer, *, note: Note
) -> None:
    """Writes the tokens of documents, each after the end-of-text token or an empty line.

    Args:
        folder: an empty folder.
        stream: the documents in pieces, in order.
        tokenizer: encodes them.
        note: gets a line every ten seconds.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    end = tokenizer.end_of_text
    separator = np.array(tokenizer.encode("\n\n") if end is None else [end], dtype)
    starts: list[int] = []
    written = number_of_bytes = words = sampled = lost = 0
    told = time.monotonic()
    with _Writer(folder) as writer:
        for batch in _batches(tokenizer.parts(stream)):
            encoded = tokenizer.encode_parts(batch)
            for (text, first), tokens in zip(batch, encoded, strict=True):
                if first:
                    starts.append(written)
                    writer.write(separator)
                    written += separator.size
                writer.write(tokens)
                written += tokens.size
                number_of_bytes += len(text.encode())
                words += len(text.split()) + text.count("\n")
            sampled += len(batch[0].text.encode())
            lost += lost_bytes(batch[0].text, tokenizer)
            if time.monotonic() - told > _SECONDS_BETWEEN_NOTES:
                told = time.monotonic()
                note(f"tokenized {number_of_bytes / 1e6:,.0f} MB: {written:,} tokens")
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    counts = Counts(written, number_of_bytes, words, len(starts), lost / max(sampled, 1))
    record = json.dumps({**counts._asdict(), "dtype": dtype.str})
    (folder / "counts.json").write_text(record, encoding="utf-8")


def lost_bytes(text: str, tokenizer: Tokenizer) -> int:
    """Bytes of the characters that decoding a text's tokens does not restore.

    A tokenizer may drop characters, replace them by an unknown token, or change them (upper to
    lower case). Their number counts and not their order; spaces that decoding adds do not count.

    Example:
        >>> from train.data.tokenizers import Bytes
        >>> lost_bytes("naïve", Bytes())
        0
    """
    back = tokenizer.decode(tokenizer.encode(text))
    if back == text:
        return 0
    missing = Counter(text) - Counter(back)
    return sum(len(character.encode()) * count for character, count in missing.items())


class _Writer:
    """Divides a stream of tokens into records, and records into files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._records = folder, 0
        self._writer: Any = None
        self._waiting: list[np.ndarray] = []
        self._count = 0

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens."""
        self._waiting.append(tokens)
        self._count += tokens.size
        if self._count >= RECORD:
            self._flush(self._count // RECORD * RECORD)

    def _flush(self, count: int) -> None:
        """Writes the first `count` of the waiting tokens."""
        joined = np.concatenate(self._waiting)
        for start in range(0, count, RECORD):
            if self._records % SHARD == 0:
                self._next_file()
            self._writer.write(joined[start : min(start + RECORD, count)].tobytes())
            self._records += 1
        self._waiting, self._count = [joined[count:]], joined.size - count

    def _next_file(self) -> None:
        """Continues in a new file."""
        if self._writer is not None:
            self._writer.close()
        path = self._folder / f"tokens-{self._records // SHARD:05d}.array_record"
        module, _ = _array_record()
        # A group of one: records are read one by one, and tokens hardly compress.
        self._writer = module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if self._count and error[0] is None:
            self._flush(self._count)
        if self._writer is not None:
            self._writer.close()


def _batches(parts: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Parts in lists that are long enough to keep all cores busy."""
    batch: list[Piece] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _array_record() -> tuple[Any, Any]:
    """The library's writer and reader."""
    try:
        from array_record.python import (
            array_record_data_source,
            array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
        )
    except ImportError:
        raise BadInput(
            "tokens are kept in array-record files, and the package array-record is not installed "
            "(it does not exist for Windows); --data.tokenizer bytes does not need it"
        ) from None
    return array_record_module, array_record_data_source
