"""Prints the notes of a release: `python .github/release_notes.py v0.1.0`.

They are the section of that version in CHANGELOG.md. The tag must be `v` and the version of the
package, which is written in one place: `mimuon_jax/__init__.py`.
"""

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def section(changelog: str, version: str) -> str:
    r"""The text under `## [version]`, up to the next version.

    Raises:
        ValueError: If the version has no section, or an empty one.

    Example:
        >>> section("# Changelog\n\n## [0.2.0] - 2026-01-01\n\nFaster.\n\n## [0.1.0]\n", "0.2.0")
        'Faster.'
    """
    _, *sections = re.split(r"^## ", changelog, flags=re.MULTILINE)
    for text in sections:
        title, _, body = text.partition("\n")
        if title.startswith(f"[{version}]") and body.strip():
            return body.strip()
    raise ValueError(
        f"CHANGELOG.md has nothing under ## [{version}]: rename its section Unreleased"
    )


def notes(tag: str, source: str, changelog: str) -> str:
    """The notes of a tag, given the package's `__init__.py` and the changelog.

    Raises:
        ValueError: If the tag is not that of the package's version.
    """
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    if tag != f"v{version}":
        raise ValueError(
            f"the tag is {tag!r}, but __version__ in mimuon_jax/__init__.py is {version!r}: "
            f"change one of them, or tag v{version}"
        )
    return section(changelog, version)


def main() -> None:
    """Prints the notes, or one line that says what is wrong."""
    if len(sys.argv) != 2:
        raise SystemExit(f"one tag is expected, such as v0.1.0; got {sys.argv[1:]}")
    source = (REPOSITORY / "mimuon_jax" / "__init__.py").read_text()
    try:
        print(notes(sys.argv[1], source, (REPOSITORY / "CHANGELOG.md").read_text()))
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
