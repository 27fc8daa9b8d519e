"""Tokenizers: bytes, byte-pair encoding trained here, and `tokenizer.json` files of Hugging Face.

All have the interface `Tokenizer`. Text that spells a special token is encoded as text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from train.data import parts as cutting
from train.data.parts import Piece, parts, pieces
from train.data.subwords import END_OF_TEXT, Subwords
from train.errors import BadInput, one_line, require

TOKENIZER_FILE = "tokenizer.json"

_WORD_END = re.compile(r"(?<=\S)(?=\s)")
_LEARNED_FROM = 1 << 28  # characters that byte-pair encoding learns from, at most


class Tokenizer(Protocol):
    """Text to integers in `[0, vocab_size)` and back."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """Token that stands before each document; None: an empty line stands there."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers with equal content."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens."""
        ...

    def parts(self, stream: Iterable[Piece]) -> Iterator[Piece]:
        """Cuts documents into parts whose tokens, joined, are those of the documents."""
        ...

    def encode_parts(self, texts: Sequence[Piece]) -> list[np.ndarray]:
        """Tokens of many parts, each as an array of the smallest of uint8, uint16 and int32."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; bytes that are not UTF-8 become replacement characters."""
        ...

    def json(self) -> str | None:
        """Content of `tokenizer.json`; None for bytes, which do not need the file."""
        ...


class Bytes:
    """UTF-8 bytes as tokens.

    Example:
        >>> Bytes().encode("é"), Bytes().decode([195, 169])
        ([195, 169], 'é')
    """

    vocab_size = 256
    end_of_text = None
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        """Bytes of a text."""
        return list(text.encode())

    def parts(self, stream: Iterable[Piece]) -> Iterator[Piece]:
        """Cuts documents at any character."""
        return parts(stream, lambda _: cutting.PART)

    def encode_parts(self, texts: Sequence[Piece]) -> list[np.ndarray]:
        """Bytes of many parts, as uint8."""
        return [np.frombuffer(text.encode(), np.uint8) for text, _ in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of bytes."""
        return bytes(tokens).decode(errors="replace")

    def json(self) -> None:
        """None: bytes do not need a file."""
        return


def train_bpe(documents: Iterable[str], *, vocab_size: int) -> Subwords:
    """Byte-level byte-pair encoding, learned from documents; every text can be encoded.

    The 256 bytes and `<|endoftext|>` are the first tokens; then the most frequent pair of adjacent
    tokens becomes a token, again and again. Equal input gives an equal tokenizer.

    Args:
        documents: the training text; of a long one, the first 270 million characters count.
        vocab_size: number of tokens, at least 257; a short text may give fewer.

    Returns:
        The tokenizer.

    Raises:
        BadInput: `vocab_size` is below 257.

    Source: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword
    units"; over bytes, with words as in GPT-2.

    Example:
        >>> tokenizer = train_bpe(["the theme of the thesis"], vocab_size=260)
        >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("the Ω"))
        (260, 'the Ω')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    require(
        vocab_size >= 257,
        f"model.vocab_size={vocab_size} is too small for --data.tokenizer bpe: 256 bytes and "
        f"{END_OF_TEXT} are its first tokens; use 8192, for instance",
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_beginning(documents, _LEARNED_FROM), trainer)
    return Subwords(backend, name="the trained tokenizer")


def _beginning(documents: Iterable[str], characters: int) -> Iterator[str]:
    """Parts of the first documents, until they have this many characters."""
    seen = 0
    for document in documents:
        for text, _ in parts(pieces(document), white_space):
            yield text
            seen += len(text)
            if seen >= characters:
                return


def white_space(piece: Piece) -> int:
    """The first place before white space, where words end in GPT-2's rule, or any place."""
    found = _WORD_END.search(piece.text, cutting.PART)
    return found.start() if found else cutting.PART


def load_tokenizer(path: Path) -> Subwords:
    """Reads a `tokenizer.json`.

    Raises:
        BadInput: the file is missing or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    file = path / TOKENIZER_FILE if path.is_dir() else path
    require(
        file.is_file(),
        f"data.tokenizer={path} is neither 'bytes' nor 'bpe' nor a {TOKENIZER_FILE} that exists",
    )
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise BadInput(
            f"{file} is not a {TOKENIZER_FILE} of Hugging Face: {one_line(error)}"
        ) from error
    return Subwords(backend, name=str(file))
