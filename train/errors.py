"""The ways a run can end that are not defects of the program."""

import re
import signal
from difflib import get_close_matches


class BadInput(Exception):
    """A mistake in the input: shown in one line, exit code 2, nothing written."""


class TrainingStopped(Exception):
    """Training cannot continue (its loss is not finite): one line, exit code 1."""


class MachineError(Exception):
    """The machine failed (a full disk, a lost folder): one line, exit code 1.

    Nothing that was saved is lost: the same command continues once the machine is repaired.
    """


class Interrupted(KeyboardInterrupt):
    """A signal ended training after a saved step: one line, exit code 128 + signal."""

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        self.signal = received


def require(condition: bool, message: str) -> None:
    """Raises `BadInput(message)` unless the condition holds."""
    if not condition:
        raise BadInput(message)


def did_you_mean(name: str, known: list[str]) -> str:
    """Returns ` (did you mean X?)` for the nearest known name, or an empty string."""
    near = get_close_matches(name, known, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(text: str) -> str:
    r"""Returns a model's text for a terminal, which would obey its control characters.

    Example:
        >>> print(shown("one two\x1b[2J"))
        one two\x1b[2J
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", _escaped, text)


def _escaped(character: re.Match[str]) -> str:
    """A character as Python writes it."""
    return character[0].encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """Returns the text with every run of white space, line ends included, as one space."""
    return " ".join(str(text).split())
