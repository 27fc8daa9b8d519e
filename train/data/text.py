"""Plain text: what is chosen on the command line, files and folders, and the held-out split."""

import gzip
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from train.data.windows import Windows, require_windows
from train.errors import BadInput, require

READERS: dict[str, Callable[[Path], bytes]] = {
    ".xz": lambda path: lzma.decompress(path.read_bytes()),
    ".gz": lambda path: gzip.decompress(path.read_bytes()),
}
FOLDER_SUFFIXES = (".txt", ".txt.xz", ".txt.gz")


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Where the text comes from, how it becomes tokens, and how it is cut."""

    source: Literal["text", "wikitext103", "tfds"] = "text"
    """text: plain text at path. wikitext103: the official files or archive in the folder path.
    tfds: a prepared TFDS dataset below the folder path."""

    path: Path | None = None
    """Text file (UTF-8, also .xz or .gz), or a folder of .txt, .txt.xz and .txt.gz files; None:
    the language reference inside every CPython. Other sources: see there; None with tfds:
    $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

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
    """Let no token see another document than its own, where documents share an example."""

    held_out: float = 0.05
    """Share of a plain text, taken from its end, that is kept for evaluation, 0 .. 1."""

    evaluation_sequences: int | None = 256
    """Largest number of held-out sequences that an evaluation reads, evenly spread; None: all."""

    cache: Path = Path("data/cache")
    """Folder for texts made into tokens, and tokenizers learned from them. It can be deleted."""

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


def read_text(path: Path | None, *, option: str = "data.path") -> bytes:
    """Reads the text of a file, of a folder, or the embedded one.

    Args:
        path: a file, a folder (its text files at any depth in sorted order, joined by an empty
            line), or None for `embedded_text`.
        option: where the path was given, for messages.

    Returns:
        The text, as the UTF-8 bytes it is stored in.

    Raises:
        BadInput: missing, empty, unreadable, or no text; naming the file.
    """
    if path is None:
        return embedded_text()
    return b"\n\n".join(read_file(file) for file in text_files(path, option=option))


def text_files(path: Path, *, option: str = "data.path") -> list[Path]:
    """A file by itself, or the text files of a folder at any depth, sorted.

    Raises:
        BadInput: there is none.
    """
    require(path.exists(), f"{option}={path} does not exist")
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.name.endswith(FOLDER_SUFFIXES) and p.is_file())
    require(
        bool(files),
        f"{option}={path} holds no {', '.join(FOLDER_SUFFIXES)} file; name a file of another "
        "suffix itself",
    )
    return files


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
    require_windows(training, "training", f"of {array.size:,} bytes")
    require_windows(held_out, "held-out", f"of {array.size:,} bytes")
    return training, held_out


def read_file(path: Path) -> bytes:
    """The bytes of one text file, decompressed by its suffix.

    Raises:
        BadInput: empty, unreadable, or no text.
    """
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
