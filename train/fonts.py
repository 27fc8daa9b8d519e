"""The font of labels in pictures and plots, and which names it can show."""

import functools
from pathlib import Path


@functools.cache
def font_file() -> Path:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and many others."""
    import matplotlib as mpl  # a fifth of a second that training does not need

    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def label_of(name: str, number: int) -> str:
    """The name of a class as the font can show it: itself, or its number if a character is missing.

    Args:
        name: of the class.
        number: its index.

    Example:
        >>> label_of("chien", 0), label_of("кот", 1), label_of("日本", 2)
        ('chien', 'кот', 'class 2')
    """
    from matplotlib.font_manager import get_font

    font = get_font(font_file())
    return name if all(font.get_char_index(ord(c)) for c in name) else f"class {number}"
