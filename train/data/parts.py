"""A stream of text in pieces, cut anew where a tokenizer gives the tokens of the whole."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

PART = 1 << 16  # characters of a part, about: enough for a core to work on
ROOM = 1 << 12  # characters after that in which a place to cut is looked for


class Piece(NamedTuple):
    """Some characters of a document."""

    text: str
    first: bool  # whether the document begins here


# From at least `PART + ROOM` characters, and whether a document begins there, to where the first
# part ends: in `(0, PART + ROOM]`.
Cut = Callable[[Piece], int]


def pieces(text: str, size: int = 1 << 20) -> Iterator[Piece]:
    """A document as pieces of at most `size` characters.

    Example:
        >>> [piece.text for piece in pieces("abcde", 2)]
        ['ab', 'cd', 'e']
    """
    return (Piece(text[i : i + size], i == 0) for i in range(0, len(text), size))


def parts(stream: Iterable[Piece], cut: Cut) -> Iterator[Piece]:
    """Cuts documents into parts of bounded size, whatever the size of the pieces they come in.

    Args:
        stream: the pieces of documents, in order.
        cut: finds the end of a part.

    Yields:
        The same characters in parts of at most `PART + ROOM`; documents stay apart.

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
