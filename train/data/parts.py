"""Documents as a stream of pieces, and parts of bounded size to tokenize them in."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

PART = 1 << 16  # characters per part, at least
ROOM = 1 << 12  # further characters among which a place to split is searched


class Piece(NamedTuple):
    """Consecutive characters of a document."""

    text: str
    first: bool  # whether the document begins with them


# From `PART + ROOM` characters to the length of the first part, in `(0, PART + ROOM]`.
Cut = Callable[[Piece], int]


def pieces(text: str, size: int = 1 << 20) -> Iterator[Piece]:
    """A document as pieces of at most `size` characters.

    Example:
        >>> [piece.text for piece in pieces("abcde", 2)]
        ['ab', 'cd', 'e']
    """
    return (Piece(text[i : i + size], i == 0) for i in range(0, len(text), size))


def parts(stream: Iterable[Piece], cut: Cut) -> Iterator[Piece]:
    """Splits documents into parts of bounded size; the pieces may have any size.

    Args:
        stream: the pieces of documents, in order.
        cut: chooses the length of a part.

    Yields:
        The same characters in parts of at most `PART + ROOM`; no part is in two documents.

    Example:
        >>> stream = [Piece("a" * 50_000, True), Piece("b" * 50_000, False), Piece("c", True)]
        >>> [(len(text), first) for text, first in parts(stream, lambda _: PART)]
        [(65536, True), (34464, False), (1, True)]
    """
    waiting, first = "", True
    for text, begins in stream:
        if begins:
            if waiting:
                yield Piece(waiting, first)
            waiting, first = "", True
        waiting += text
        while len(waiting) >= PART + ROOM:
            end = cut(Piece(waiting[: PART + ROOM], first))
            yield Piece(waiting[:end], first)
            waiting, first = waiting[end:], False
    if waiting:
        yield Piece(waiting, first)
