"""The training and held-out documents of every source."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from train.data import prepared, wikitext
from train.data.cache import Note, fingerprint
from train.data.parts import Piece, pieces
from train.data.text import TextData, embedded_text, read_pieces, text_files
from train.errors import require


class Corpus(NamedTuple):
    """Documents and their fingerprint."""

    pieces: Callable[[], Iterable[Piece]]  # of the documents, in order, from the first
    fingerprint: str  # hexadecimal; equal for equal documents


def corpora(data: TextData, *, note: Note) -> tuple[Corpus, Corpus]:
    """The training and the held-out documents of a configuration.

    Args:
        data: the source.
        note: gets a line if something has to be prepared first, or is left out.

    Returns:
        Training and held-out corpus.

    Raises:
        BadInput: a file, split or feature is missing.
    """
    own = None if data.validation is None else text_corpus(data.validation, "data.validation", note)
    if data.source == "text":
        whole = text_corpus(data.path, "data.path", note)
        return (whole, own) if own is not None else _cut(whole, data.held_out)
    if data.source == "wikitext103":
        builder = _wikitext103(data, note=note)
    else:
        builder = prepared.open_dataset(str(data.dataset), data.path)
    training = _split(builder, data.split, data.text_feature)
    if own is not None:
        return training, own
    return training, _split(builder, data.validation_split, data.text_feature)


def text_corpus(path: Path | None, option: str, note: Note) -> Corpus:
    """Text files, each a document; the documents of a WikiText file are its articles.

    Args:
        path: file or folder; None: the embedded text.
        option: where the path was given, for messages.
        note: gets a line about files that are left out.

    Raises:
        BadInput: there is no text.
    """
    if path is None:
        text = embedded_text()
        return Corpus(lambda: pieces(text.decode()), hashlib.sha256(text).hexdigest())
    files = text_files(path, option=option, note=note)
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        with file.open("rb") as opened:
            digest.update(f"{name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())

    def stream() -> Iterator[Piece]:
        for file in files:
            if wikitext.is_wikitext(file):
                text = "".join(piece for piece, _ in read_pieces(file))
                for _, article in wikitext.articles(text):
                    yield from pieces(article)
            else:
                yield from read_pieces(file)

    return Corpus(stream, digest.hexdigest())


def _cut(whole: Corpus, held_out: float) -> tuple[Corpus, Corpus]:
    """The beginning and the end of a text; the document at the border is divided."""
    size = sum(len(text) for text, _ in whole.pieces())
    cut = size - round(size * held_out)

    def start() -> Iterator[Piece]:
        position = 0
        for text, first in whole.pieces():
            if position >= cut:
                return
            yield Piece(text[: cut - position], first)
            position += len(text)

    def end() -> Iterator[Piece]:
        position, begun = 0, False
        for text, first in whole.pieces():
            place = max(cut - position, 0)
            if place < len(text):
                yield Piece(text[place:], first or not begun)
                begun = True
            position += len(text)

    names = (fingerprint(whole.fingerprint, held_out, name) for name in ("start", "end"))
    return Corpus(start, next(names)), Corpus(end, next(names))


def _split(builder: Any, split: str, feature: str) -> Corpus:
    """A split of a prepared TFDS dataset."""
    texts = prepared.Texts(builder, split, feature)
    require(len(texts) > 0, f"TFDS split {split!r} is empty")

    def stream() -> Iterator[Piece]:
        for text in texts:
            yield from pieces(text)

    return Corpus(stream, prepared.identity(builder, split, feature))


def _wikitext103(data: TextData, *, note: Note) -> Any:
    """WikiText-103 as a TFDS dataset in the cache, made from the official files."""
    folder = data.path or Path()
    form = wikitext.which(folder)
    require(
        data.split != "train" or "train" in wikitext.sources(folder, form),
        f"data.path={folder} has no wiki.train.{form}; put it there, or train on other text: "
        f"--data.source text --data.path CORPUS --data.validation {folder}/wiki.valid.{form}",
    )
    from train.data import wikitext103  # imports TFDS, which takes two seconds

    return prepared.open_dataset("wiki_text103", wikitext103.prepare(folder, data.cache, note=note))
