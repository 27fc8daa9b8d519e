"""A tokenizer of the library `tokenizers`, which encodes text of any length in bounded memory.

The library needs about 180 bytes per character and uses one core per text. So a long text is
encoded in parts, and split only where the parts have the tokens of the whole: at white space if
possible, otherwise where a word begins or ends, otherwise at any character. Each place is tested:

    encode(before + after) = encode(before) + encode(after)

White space and the ends of words are tested with 128 characters on each side. The test is repeated
with one and two characters more before the place: where tokens follow a period (digits in groups
of three, runs of one letter), their boundaries then move, and the test fails. Any other character
is tested with the whole part before it. A text without such a place is split anyway: a tokenizer of
whole words encodes a word of a megabyte as one unknown token, and its parts as one each.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from train.data import parts as cutting
from train.data.parts import Piece, parts, pieces
from train.errors import BadInput, one_line, require

END_OF_TEXT = "<|endoftext|>"
# Names of the token between two documents in published tokenizers, the most common first.
END_OF_TEXT_NAMES = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek, with a full-width vertical bar
    "<|end\u2581of\u2581sentence|>",
    "</s>",
    "<eos>",
    "[SEP]",
)

_WHITE_SPACE = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)")  # its beginning and its end
_WORD = re.compile(r"\b(?=.)", re.DOTALL)
_CONTEXT = 128  # characters on each side of a tested place
_TRIES = 32  # tested places of one kind
_LONGEST_TOKEN = 128  # characters; a token begins among as many


class Subwords:
    """A tokenizer of the library `tokenizers`."""

    def __init__(self, backend: Any, *, name: str) -> None:
        """Wraps a `tokenizers.Tokenizer`.

        Args:
            backend: the library's object.
            name: for messages.

        Raises:
            BadInput: the tokenizer has no token to put between documents.
        """
        backend.no_padding()
        backend.no_truncation()
        self._name = name
        self._json: str = backend.to_str()
        backend.encode_special_tokens = True  # text that spells a special token stays text
        self._backend = backend
        self._continuing = _continuing(backend, self._json)
        # The largest id decides: there may be a gap below an added token.
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

    def parts(self, stream: Iterable[Piece]) -> Iterator[Piece]:
        """Splits documents where the parts have the tokens of the whole."""
        return parts(stream, self._cut)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        encoded = self.encode_parts(list(self.parts(pieces(text))))
        return [int(token) for part in encoded for token in part]

    def encode_parts(self, texts: Sequence[Piece]) -> list[np.ndarray]:
        """Tokens of many parts, on all cores."""
        dtype = token_dtype(self.vocab_size)
        encoded: list[np.ndarray] = [np.zeros(0, dtype)] * len(texts)
        for backend, first in ((self._backend, True), (self._continuing, False)):
            chosen = [i for i, text in enumerate(texts) if text.first is first]
            found = self._encode(backend, [texts[i].text for i in chosen])
            for i, encoding in zip(chosen, found, strict=True):
                encoded[i] = np.array(encoding.ids, dtype)
        return encoded

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; tokens outside the vocabulary are left out."""
        return self._backend.decode([int(t) for t in tokens], skip_special_tokens=False)

    def json(self) -> str:
        """Content of `tokenizer.json`."""
        return self._json

    def _encode(self, backend: Any, texts: list[str]) -> list[Any]:
        """The library's encodings."""
        try:
            return backend.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise BadInput(
                f"{self._name} cannot encode the text: {one_line(error)}; add the missing token to "
                "its vocabulary, or choose another --data.tokenizer"
            ) from error

    def _cut(self, piece: Piece) -> int:
        """The length of the first part of a text."""
        start, stop = cutting.PART, len(piece.text) - _CONTEXT
        for kind in (_WHITE_SPACE, _WORD):
            for match in itertools.islice(kind.finditer(piece.text, start, stop), _TRIES):
                if self._is_safe(piece.text, match.start()):
                    return match.start()
        return self._between_tokens(piece) or start

    def _is_safe(self, text: str, place: int) -> bool:
        """Whether the text around a place has the tokens of its two sides."""
        after = text[place : place + _CONTEXT]
        befores = [text[max(place - _CONTEXT - more, 0) : place] for more in range(3)]
        texts = [text for before in befores for text in (before + after, before)]
        (right,) = self._encode(self._continuing, [after])
        encoded = [found.ids for found in self._encode(self._backend, texts)]
        pairs = zip(encoded[::2], encoded[1::2], strict=True)
        return all(both == left + right.ids for both, left in pairs)

    def _between_tokens(self, piece: Piece) -> int | None:
        """The first place where the whole text has the tokens of its two sides, if there is one."""
        backend = self._backend if piece.first else self._continuing
        start, stop = cutting.PART, cutting.PART + _LONGEST_TOKEN
        text = piece.text[: stop + _CONTEXT]
        (whole,) = self._encode(backend, [text])
        for place in range(start, stop):
            (after,) = self._encode(self._continuing, [text[place:]])
            count = len(whole.ids) - len(after.ids)
            if after.ids == whole.ids[count:]:
                (before,) = self._encode(backend, [text[:place]])
                if before.ids == whole.ids[:count]:
                    return place
        return None


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint8, uint16 and int32 that holds tokens below `vocab_size`.

    Example:
        >>> token_dtype(256), token_dtype(257), token_dtype(65537)
        (dtype('uint8'), dtype('uint16'), dtype('int32'))
    """
    small = np.uint8 if vocab_size <= 1 << 8 else np.uint16
    return np.dtype(small if vocab_size <= 1 << 16 else np.int32)


def _continuing(backend: Any, content: str) -> Any:
    """The tokenizer for the later parts of a text: it adds no space before the first word."""
    settings = json.loads(content)
    if any(not token["special"] for token in settings["added_tokens"]):
        return backend  # it also adds the space after such a token, which must stay
    settings["normalizer"] = _without_prepending(settings["normalizer"])
    _without_prefix(settings["pre_tokenizer"])
    if settings == json.loads(content):
        return backend
    continuing = type(backend).from_str(json.dumps(settings))
    continuing.encode_special_tokens = True
    return continuing


def _without_prepending(normalizer: Any) -> Any:
    """The normalizer without what it adds in front."""
    if normalizer is None or normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] != "Sequence":
        return normalizer
    kept = [part for part in normalizer["normalizers"] if part["type"] != "Prepend"]
    return {**normalizer, "normalizers": kept}


def _without_prefix(pre_tokenizer: Any) -> None:
    """Switches off the space before the first word; later in a sequence, it is one per word."""
    if pre_tokenizer is None:
        return
    for index, part in enumerate(pre_tokenizer.get("pretokenizers", [pre_tokenizer])):
        if part["type"] == "ByteLevel" and index == 0:
            part["add_prefix_space"] = False
        if part["type"] == "Metaspace" and (index == 0 or part["prepend_scheme"] == "first"):
            part["prepend_scheme"] = "never"
