"""A configuration's text as windows of tokens, tokenized once and kept in the cache."""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data import token_shards
from train.data.cache import Note, cached, fingerprint, note
from train.data.documents import Corpus, corpora
from train.data.parts import parts
from train.data.text import TextData, read_text, split
from train.data.tokenizers import (
    TOKENIZER_FILE,
    Bytes,
    Tokenizer,
    load_tokenizer,
    train_bpe,
    white_space,
)
from train.data.tokens import Counts, Tokens, write_tokens
from train.data.windows import Examples, PackedWindows, Windows, require_windows
from train.errors import require

_WORTH_A_LINE = 5e-4  # share of lost bytes
FORMAT = 2  # of what is cached; raised when it would differ for the same text


class LanguageData(NamedTuple):
    """What a language model is trained and evaluated on."""

    training: Examples
    held_out: Examples
    tokenizer: Tokenizer
    counts: Counts  # of the held-out text
    identity: dict[str, int | str]  # changes when the data changes
    shuffled: bool = True  # False: trained on in order


def load(data: TextData, *, vocab_size: int, note: Note = note) -> LanguageData:
    """Reads the text of a configuration and tokenizes it the first time.

    Plain text as bytes is read directly and needs no cache.

    Args:
        data: text and tokenizer.
        vocab_size: of the model; a tokenizer that is learned here gets as many tokens.
        note: gets lines about the preparation.

    Returns:
        Windows of the training and the held-out text, with their tokenizer and sizes.

    Raises:
        BadInput: the text or the tokenizer is missing or does not fit.
    """
    if data.source == "shards":
        return _shards(data, vocab_size, note)
    if data.tokenizer == "bytes" and data.source == "text" and not data.packing:
        return _plain_bytes(data, note)
    training, held_out = corpora(data, note=note)
    tokenizer = _tokenizer(data, training, vocab_size, note)
    require(
        tokenizer.vocab_size <= vocab_size,
        f"model.vocab_size={vocab_size} is less than the {tokenizer.vocab_size} tokens of "
        f"data.tokenizer={data.tokenizer}; use --model.vocab-size {tokenizer.vocab_size}",
    )
    streams = [_tokens(data.cache, corpus, tokenizer, note) for corpus in (training, held_out)]
    unit = "bytes" if data.tokenizer == "bytes" else "tokens"
    examples = []
    for name, stream in zip(("training", "held-out"), streams, strict=True):
        if data.packing:
            windows = PackedWindows(stream, stream.starts, data.sequence_length)
        else:
            windows = Windows(stream, data.sequence_length)
        require_windows(windows, name, unit)
        examples.append(windows)
    counts = streams[1].counts
    if counts.lost >= _WORTH_A_LINE:
        note(
            f"warning: data.tokenizer={data.tokenizer} loses text: {counts.lost:.1%} of the bytes "
            "of the held-out text do not come back from its tokens (measured on samples); each "
            "counts as 8 bits in bits_per_byte and word_perplexity"
        )
    identity: dict[str, int | str] = {
        "tokens": streams[0].size,
        "training": training.fingerprint,
        "held_out": held_out.fingerprint,
        "tokenizer": tokenizer.fingerprint,
    }
    return LanguageData(examples[0], examples[1], tokenizer, counts, identity)


def _plain_bytes(data: TextData, note: Note) -> LanguageData:
    """Bytes of a plain text, in memory."""
    text = read_text(data.path, note=note)
    identity: dict[str, int | str] = {"bytes": len(text), "crc32": zlib.crc32(text)}
    if data.validation is None:
        training, held_out = split(text, data)
        end = text[len(text) - held_out.data.size :]
    else:
        end = read_text(data.validation, option="data.validation", note=note)
        identity["validation_crc32"] = zlib.crc32(end)
        training, held_out = (
            Windows(np.frombuffer(part, np.uint8), data.sequence_length) for part in (text, end)
        )
        require_windows(training, "training", "bytes")
        require_windows(held_out, "held-out", "bytes")
    words = len(end.decode(errors="replace").split()) + end.count(b"\n")
    counts = Counts(tokens=len(end), bytes=len(end), words=words, documents=1)
    return LanguageData(training, held_out, Bytes(), counts, identity)


def _shards(data: TextData, vocab_size: int, note: Note) -> LanguageData:
    """Published tokens, in order. The sizes of their text are unknown."""
    require(not data.packing, "data.packing needs documents, which shards do not divide")
    require(
        data.validation is None,
        f"data.validation={data.validation} is text; shards are evaluated on those in data.path",
    )
    training, held_out = token_shards.open_shards(data.path, note=note)
    numbers = data.tokenizer == "bytes"
    tokenizer: Any = token_shards.Numbers() if numbers else load_tokenizer(Path(data.tokenizer))
    require(
        tokenizer.vocab_size <= vocab_size,
        f"model.vocab_size={vocab_size} is less than the {tokenizer.vocab_size} tokens of the "
        f"shards; use --model.vocab-size {tokenizer.vocab_size}",
    )
    first, second = (Windows(stream, data.sequence_length) for stream in (training, held_out))
    require_windows(first, "training", "tokens")
    require_windows(second, "held-out", "tokens")
    identity: dict[str, int | str] = {
        "tokens": training.size,
        "training": training.fingerprint,
        "held_out": held_out.stream.fingerprint,
    }
    counts = Counts(tokens=held_out.size, bytes=0, words=0, documents=0)
    return LanguageData(first, second, tokenizer, counts, identity, shuffled=False)


def _tokenizer(data: TextData, training: Corpus, vocab_size: int, note: Note) -> Tokenizer:
    """The configured tokenizer; byte-pair encoding is learned once and kept in the cache."""
    if data.tokenizer == "bytes":
        return Bytes()
    if data.tokenizer != "bpe":
        return load_tokenizer(Path(data.tokenizer))

    def make(folder: Path) -> None:
        note(f"learning a vocabulary of {vocab_size:,} tokens from the training text")
        learned = train_bpe(
            (text for text, _ in parts(training.pieces(), white_space)), vocab_size=vocab_size
        )
        (folder / TOKENIZER_FILE).write_text(learned.json(), encoding="utf-8")

    name = f"bpe-{fingerprint(FORMAT, training.fingerprint, vocab_size)}"
    return load_tokenizer(cached(data.cache, name, make, note=note))


def _tokens(cache: Path, corpus: Corpus, tokenizer: Tokenizer, note: Note) -> Tokens:
    """The tokens of a corpus, from the cache if possible."""

    def make(folder: Path) -> None:
        note("tokenizing the text, once")
        write_tokens(folder, corpus.pieces(), tokenizer, note=note)
        text = tokenizer.json()
        if text is not None:
            (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")

    name = f"tokens-{fingerprint(FORMAT, corpus.fingerprint, tokenizer.fingerprint)}"
    return Tokens(cached(cache, name, make, note=note))
