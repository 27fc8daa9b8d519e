"""Tokenizers: bytes, byte-pair encoding trained here, and `tokenizer.json` files of Hugging Face.

All have the same small interface, `Tokenizer`. Text that spells a special token is text.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.errors import BadInput, require

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# What trained tokenizers call the token between two documents, the usual first.
END_OF_TEXT_NAMES = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "</s>",
    "<eos>",
    "[SEP]",
)

# A long text is encoded in parts, split where a line ends and the next one starts with a letter:
# there no pattern in use joins characters, so the tokens are those of the whole.
_PART = 1 << 16  # characters, at least
_SAFE = re.compile(r"(?<=\S\n)(?=\S)")
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
        """Equal for tokenizers that encode alike."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones added."""
        ...

    def encode_parts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of many short texts, in the smallest of uint8, uint16, int32; the fast way."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; what is no UTF-8 becomes replacement signs."""
        ...

    def json(self) -> str | None:
        """Content of `tokenizer.json`; None for bytes, which need none."""
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

    def encode_parts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Bytes of many texts, as uint8."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of bytes."""
        return bytes(tokens).decode(errors="replace")

    def json(self) -> None:
        """Bytes have no file."""
        return


class Subwords:
    """A tokenizer of the library `tokenizers`."""

    def __init__(self, backend: Any, *, name: str) -> None:
        """Wraps a `tokenizers.Tokenizer`.

        Args:
            backend: the library's object.
            name: for messages.

        Raises:
            BadInput: it has no token that can stand between documents.
        """
        backend.no_padding()
        backend.no_truncation()
        self._json: str = backend.to_str()
        backend.encode_special_tokens = True  # text that spells a special token stays text
        self._backend = backend
        # The largest id decides: an added token may lie above a gap.
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        found = [backend.token_to_id(token) for token in END_OF_TEXT_NAMES]
        known = [token for token in found if token is not None]
        require(
            bool(known),
            f"{name} has no token to put between documents; add one of "
            f"{', '.join(END_OF_TEXT_NAMES)} to it",
        )
        self.end_of_text = int(known[0])
        self.fingerprint = hashlib.sha256(self._json.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return [int(token) for part in self.encode_parts(list(parts(text))) for token in part]

    def encode_parts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of many texts, on all cores."""
        dtype = token_dtype(self.vocab_size)
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype) for encoding in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; tokens outside of the vocabulary are left out."""
        return self._backend.decode([int(t) for t in tokens], skip_special_tokens=False)

    def json(self) -> str:
        """Content of `tokenizer.json`."""
        return self._json


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint8, uint16 and int32 that holds tokens below `vocab_size`.

    Example:
        >>> token_dtype(256), token_dtype(257), token_dtype(65537)
        (dtype('uint8'), dtype('uint16'), dtype('int32'))
    """
    small = np.uint8 if vocab_size <= 1 << 8 else np.uint16
    return np.dtype(small if vocab_size <= 1 << 16 else np.int32)


def train_bpe(documents: Iterable[str], *, vocab_size: int) -> Subwords:
    """Byte-level byte-pair encoding, learned from documents; every text can be encoded.

    The 256 bytes and `<|endoftext|>` are tokens to begin with; then, one after the other, the
    most frequent pair of neighbours becomes a token. Equal input gives an equal tokenizer.

    Args:
        documents: the training text; of a long one, the first 270 million characters.
        vocab_size: tokens wanted, at least 257; a short text has fewer pairs than that.

    Returns:
        The tokenizer.

    Raises:
        BadInput: a vocabulary of less than 257.

    Source: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword
    units"; over bytes as in GPT-2, with GPT-2's rule of where words begin.

    Example:
        >>> tokenizer = train_bpe(["the theme of the thesis"], vocab_size=260)
        >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("the Ω"))
        (260, 'the Ω')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    require(
        vocab_size >= 257,
        f"model.vocab_size={vocab_size} is too small for --data.tokenizer bpe: 256 bytes and "
        f"{END_OF_TEXT} are tokens to begin with; use 8192, for instance",
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
        for part in parts(document):
            yield part
            seen += len(part)
            if seen >= characters:
                return


def load_tokenizer(path: Path) -> Subwords:
    """Reads a `tokenizer.json`.

    Raises:
        BadInput: missing, or no tokenizer.
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
        raise BadInput(f"{file} is no {TOKENIZER_FILE} of Hugging Face: {error}") from error
    return Subwords(backend, name=str(file))


def parts(text: str) -> Iterator[str]:
    r"""Splits a long text where no tokenizer joins characters; the parts make up the text.

    Example:
        >>> len(list(parts("a line\n" * 30_000)))
        4
    """
    start = 0
    while start < len(text):
        safe = _SAFE.search(text, start + _PART)
        end = safe.start() if safe else len(text)
        yield text[start:end]
        start = end
