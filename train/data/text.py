"""Plain text: its options, files and folders, and the held-out part."""

import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from train.data.cache import Note, note
from train.data.folders import EMPTY, describe, list_files
from train.data.parts import Piece
from train.data.windows import Windows, require_windows
from train.errors import BadInput, one_line, require

FOLDER_SUFFIXES = (".txt", ".txt.xz", ".txt.gz")
_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The source of the text, its tokenizer, and how it is divided into examples."""

    source: Literal["text", "wikitext103", "tfds", "shards"] = "text"
    """text: plain text at path. wikitext103: the official files or archive in the folder path.
    tfds: a prepared TFDS dataset below the folder path. shards: files of GPT-2 tokens, such as
    fineweb_train_000001.bin, in the folder path, trained on in order."""

    path: Path | None = None
    """Text file (UTF-8, also .xz or .gz), or a folder of .txt, .txt.xz and .txt.gz files; None:
    the language reference included in CPython. For other sources see --data.source; None with
    tfds: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets."""

    validation: Path | None = None
    """Text file or folder to evaluate on, such as wiki.valid.tokens; None: the source's own
    validation split, or the end of its text."""

    dataset: str | None = None
    """TFDS dataset, as NAME or NAME/CONFIG or NAME/CONFIG/VERSION: lm1b, c4/en."""

    text_feature: str = "text"
    """Feature of a TFDS example that holds its text."""

    split: str = "train"
    """TFDS split to train on; a slice such as train[:95%] works."""

    validation_split: str = "validation"
    """TFDS split to evaluate on; a slice such as train[95%:] works."""

    tokenizer: str = "bytes"
    """bytes; bpe: byte-pair encoding of model.vocab_size tokens, learned from the training text;
    or the path of a Hugging Face tokenizer.json."""

    sequence_length: int = 256
    """Length of a training example, in tokens (bytes, if tokens are bytes)."""

    packing: bool = False
    """Restrict attention to the token's own document where an example holds several."""

    held_out: float = 0.05
    """Fraction of a plain text, taken from its end, that is held out for evaluation, 0 .. 1."""

    evaluation_sequences: int | None = 256
    """Maximum number of held-out sequences per evaluation, evenly spaced; None: all."""

    cache: Path = Path("data/cache")
    """Folder for tokenized texts and for tokenizers learned from them. It can be deleted."""

    def __post_init__(self) -> None:
        require(
            self.sequence_length >= 1,
            f"data.sequence_length={self.sequence_length} must be at least 1",
        )
        require(0 < self.held_out < 1, f"data.held_out={self.held_out} must lie between 0 and 1")
        require(
            self.evaluation_sequences is None or self.evaluation_sequences >= 1,
            f"data.evaluation_sequences={self.evaluation_sequences} must be at least 1",
        )
        require(
            (self.dataset is not None) == (self.source == "tfds"),
            f"data.source={self.source} and data.dataset={self.dataset} do not fit: name a dataset "
            "with --data.source tfds, and only with it",
        )
        require(
            self.path is not None or self.source != "wikitext103",
            "data.source=wikitext103 needs --data.path, the folder with wiki.train.tokens, "
            "wiki.valid.tokens and wiki.test.tokens, or with their archive",
        )


def embedded_text() -> bytes:
    """The language reference inside CPython, topics in sorted order, repeated paragraphs once.

    Topics quote each other (about a fifth of the text), and a held-out paragraph that was trained
    on would measure memorization. So every paragraph is kept only where it first occurs.

    Raises:
        BadInput: this Python was packaged without `pydoc_data`.
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


def read_text(path: Path | None, *, option: str = "data.path", note: Note = note) -> bytes:
    """Reads the text of a file, of a folder, or the embedded one.

    Args:
        path: a file, a folder (its text files at any depth in sorted order, joined by an empty
            line), or None for `embedded_text`.
        option: where the path was given, for messages.
        note: gets a line about files that are left out.

    Returns:
        The text, as the UTF-8 bytes it is stored in, without byte-order marks.

    Raises:
        BadInput: a file is missing, empty, unreadable or not text; the message names it.
    """
    if path is None:
        return embedded_text()
    files = text_files(path, option=option, note=note)
    return b"\n\n".join(b"".join(text.encode() for text, _ in read_pieces(file)) for file in files)


def text_files(path: Path, *, option: str = "data.path", note: Note = note) -> list[Path]:
    """A file by itself, or the text files of a folder at any depth, sorted.

    Hidden and system files are ignored. Files of another type and empty files are left out, and
    `note` gets one line about them.

    Raises:
        BadInput: there is no text.
    """
    require(
        path.exists(),
        f"{option}={path} does not exist; name a file or a folder, from {Path.cwd()} or in full",
    )
    if not path.is_dir():
        require(path.is_file(), f"{option}={path} is neither a file nor a folder")
        require(not is_blank(path), f"{path} is empty")
        return [path]
    listed = list_files(path, FOLDER_SUFFIXES)
    blank = {file for file in listed.files if is_blank(file)}
    empty = [(EMPTY, str(file.relative_to(path))) for file in listed.files if file in blank]
    left_out = describe(sorted([*listed.left_out, *empty], key=lambda item: item[1]))
    files = [file for file in listed.files if file not in blank]
    require(
        bool(files),
        f"{option}={path} holds no text in files of the suffixes {', '.join(FOLDER_SUFFIXES)}"
        f"{'; ' if left_out else ''}{left_out}; name a file of another suffix itself",
    )
    if left_out:
        note(f"{option}={path}: {left_out}")
    return files


def is_blank(path: Path) -> bool:
    """Whether a file holds nothing but white space."""
    return all(text.isspace() for text, _ in read_pieces(path))


def split(text: bytes, data: TextData) -> tuple[Windows, Windows]:
    """Divides a text into training and held-out windows; no byte is in both.

    Args:
        text: the whole text.
        data: sequence length, and the fraction that is held out from the end of the text.

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
    require_windows(training, "training", f"of {array.size:,} bytes")
    require_windows(held_out, "held-out", f"of {array.size:,} bytes")
    return training, held_out


def read_pieces(path: Path) -> Iterator[Piece]:
    """The text of one file, decompressed by its suffix, a megabyte at a time.

    Raises:
        BadInput: the file is unreadable, or is not text.
    """
    openers = {".xz": lzma.open, ".gz": gzip.open}
    opener = openers.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            yield from decoded_pieces(cast(BinaryIO, file), path)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise BadInput(f"cannot read {path}: {one_line(error)}") from error


def decoded_pieces(file: BinaryIO, path: Path) -> Iterator[Piece]:
    """The text of an open file, a megabyte at a time, without its byte-order mark.

    Raises:
        BadInput: it is not text; `path` names it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0  # of what is decoded next, in bytes
    marked, first = True, True  # a byte-order mark, the first piece may still come
    while True:
        data = file.read(_AT_ONCE)
        waiting = len(decoder.getstate()[0])
        text = _decoded(decoder, data, path, position - waiting)
        if text and marked:
            text, marked = text.removeprefix("\ufeff"), False
        if text:
            yield Piece(text, first)
            first = False
        if not data:
            return
        position += len(data)


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, path: Path, position: int) -> str:
    """Characters of the next bytes; no bytes end the text."""
    try:
        text = decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        place, byte = position + error.start, error.object[error.start]
        raise BadInput(
            f"{path} is not text: byte {byte:#04x} at offset {place} is not valid UTF-8"
        ) from None
    if "\0" in text:
        place = position + len(text[: text.index("\0")].encode())
        raise BadInput(f"{path} is not text: a zero byte at offset {place}")
    return text
