"""WikiText-103's official files: where they are, and the articles in them."""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from train.data.folders import ARCHIVE_ERRORS
from train.data.parts import Piece
from train.data.text import decoded_pieces, read_pieces
from train.errors import BadInput, one_line, require

ARCHIVES = {"tokens": "wikitext-103-v1.zip", "raw": "wikitext-103-raw-v1.zip"}
SPLITS = {"train": "train", "validation": "valid", "test": "test"}  # ours and the files'

# An article's heading: one equals sign on each side, and an empty line before and after.
_HEADING = re.compile(r"(?:^|(?<=\n)) ?\r?\n = ([^=\n]+) = \r?\n ?\r?\n")


def is_wikitext(file: Path) -> bool:
    """Whether a file is a file of WikiText, by its name.

    Example:
        >>> is_wikitext(Path("wiki.valid.tokens")), is_wikitext(Path("wiki.txt"))
        (True, False)
    """
    return re.fullmatch(r"wiki\.(train|valid|test)\.(tokens|raw)", file.name) is not None


def articles(text: str) -> Iterator[tuple[str, str]]:
    r"""Splits a WikiText file into titles and articles; the articles, joined, are the file.

    Args:
        text: content of a `wiki.*.tokens` or `wiki.*.raw` file.

    Yields:
        Title and text, including the heading and the empty line before it. Text before the first
        heading belongs to the first article; a file without headings is one article.

    Example:
        >>> list(articles(" \n = A = \n \n a b \n \n = B = \n \n c \n"))
        [('A', ' \n = A = \n \n a b \n'), ('B', ' \n = B = \n \n c \n')]
    """
    headings = list(_HEADING.finditer(text))
    starts = [0, *(heading.start() for heading in headings[1:]), len(text)]
    titles = [heading.group(1) for heading in headings] or [""]
    for title, start, end in zip(titles, starts[:-1], starts[1:], strict=True):
        yield title, text[start:end]


def which(folder: Path) -> str:
    """The form of the data in a folder: "tokens" (rare words are <unk>) or "raw".

    Raises:
        BadInput: the folder has neither.
    """
    for form in ARCHIVES:
        if any(map(_has_content, [*_files(folder, form).values(), _archive(folder, form)])):
            return form
    raise BadInput(
        f"data.path={folder} holds no WikiText-103: put wiki.train.tokens, wiki.valid.tokens and "
        f"wiki.test.tokens there, or {' or '.join(ARCHIVES.values())}"
    )


def sources(folder: Path, form: str) -> dict[str, Path]:
    """The file that each split is in: its own, or the archive of all."""
    files = {split: file for split, file in _files(folder, form).items() if _has_content(file)}
    return files or dict.fromkeys(SPLITS, _archive(folder, form))


def read(file: Path, form: str, split: str) -> str:
    """Text of a split, from its own file or from the archive.

    Raises:
        BadInput: the file is empty or not text; the archive is broken, or is another one.
    """
    if file.suffix != ".zip":
        return _joined(read_pieces(file), str(file))
    inside = f"{'wikitext-103' if form == 'tokens' else 'wikitext-103-raw'}/{_name(form, split)}"
    try:
        with zipfile.ZipFile(file) as archive, archive.open(inside) as member:
            return _joined(decoded_pieces(cast(BinaryIO, member), file), f"{inside} in {file}")
    except (*ARCHIVE_ERRORS, KeyError, OSError) as error:
        raise BadInput(f"{file} is not WikiText-103's archive: {one_line(error)}") from error


def _joined(pieces: Iterable[Piece], name: str) -> str:
    """The text of a file."""
    text = "".join(piece for piece, _ in pieces)
    require(bool(text) and not text.isspace(), f"{name} is empty")
    return text


def _files(folder: Path, form: str) -> dict[str, Path]:
    """The path of the official file of each split, which may not exist."""
    return {split: folder / _name(form, split) for split in SPLITS}


def _has_content(file: Path) -> bool:
    """Whether a path is a file that is not empty."""
    return file.is_file() and file.stat().st_size > 0


def _name(form: str, split: str) -> str:
    """Name of the official file of a split."""
    return f"wiki.{SPLITS[split]}.{form}"


def _archive(folder: Path, form: str) -> Path:
    """The path of the archive of all splits, which may not exist."""
    return folder / ARCHIVES[form]
