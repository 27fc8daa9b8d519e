"""The cache: a folder is whole or missing, whatever happens while it is made."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from train.data.cache import cached
from train.errors import BadInput
from train.integrity import INTEGRITY


def make(folder: Path) -> None:
    """Two files."""
    (folder / "a").write_bytes(b"first")
    (folder / "b").write_bytes(b"second")


def never(folder: Path) -> None:
    """A maker that must not be called."""
    pytest.fail(f"{folder} was made again")


def test_a_folder_is_made_once(tmp_path: Path):
    folder = cached(tmp_path / "cache", "x", make, note=pytest.fail)
    assert (folder / "a").read_bytes() == b"first"
    assert cached(tmp_path / "cache", "x", never, note=pytest.fail) == folder


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda f: (f / "a").write_bytes(b"girst"), "checksum of a is wrong"),
    "truncated": (lambda f: (f / "a").write_bytes(b"fir"), "a has 3 bytes instead of 5"),
    "removed": (lambda f: (f / "b").unlink(), "b is missing"),
    "unsealed": (lambda f: (f / INTEGRITY).unlink(), "INTEGRITY.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_named_and_made_again(kind: str, tmp_path: Path):
    folder = cached(tmp_path, "x", make)
    damage, message = DAMAGE[kind]
    damage(folder)
    notes: list[str] = []
    assert cached(tmp_path, "x", make, note=notes.append) == folder
    assert len(notes) == 1
    assert str(folder) in notes[0]
    assert message in notes[0]
    assert (folder / "a").read_bytes() == b"first"


def test_a_failure_leaves_nothing(tmp_path: Path):
    def fail(folder: Path) -> None:
        make(folder)
        raise BadInput("no such text")

    with pytest.raises(BadInput, match="no such text"):
        cached(tmp_path, "x", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
    cached(tmp_path, "x", make, note=pytest.fail)


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path, repository: Path):
    program = (
        "import sys, os, signal; from pathlib import Path; from train.data.cache import cached\n"
        "def make(folder):\n"
        "    (folder / 'a').write_bytes(b'fir'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "cached(Path(sys.argv[1]), 'x', make)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=repository)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    folder = cached(tmp_path, "x", make, note=pytest.fail)
    assert (folder / "a").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.lock", "x"]


def test_of_several_at_once_one_makes_it_and_the_others_wait(tmp_path: Path):
    makers: list[int] = []
    notes: list[str] = []
    begun = threading.Event()

    def slowly(folder: Path) -> None:
        makers.append(threading.get_ident())
        begun.set()
        while not notes:  # until another one waits
            time.sleep(0.01)
        make(folder)

    threads = [
        threading.Thread(target=lambda: cached(tmp_path, "x", slowly, note=notes.append))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        begun.wait(30)
    for thread in threads:
        thread.join(30)
    assert len(makers) == 1
    assert all("waiting for another process" in text for text in notes)


@pytest.mark.skipif(os.name == "nt", reason="a file instead of a folder gives another error")
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"another folder with --data\.cache"):
        cached(tmp_path / "file", "x", make)
