"""Faults of the machine and of its users: what a run does, and what the same command does next.

Every disturbed command has to end with exit code 0, 1 or 2 and at most one line of error. The same
command then has to finish with the numbers of an undisturbed run.
"""

import contextlib
import errno
import functools
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks import fuzz
from benchmarks.disturbed import call, copy, numbers, repaired, wrong
from train import loop

Damage = Callable[[Path], object]

OTHER_JSON = {kind: kind.encode() for kind in ("[]", "null", "5", '"x"', "{}")}
DAMAGES: dict[str, Damage] = {
    "removed": lambda p: p.unlink(),
    "emptied": lambda p: p.write_bytes(b""),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "flipped": lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]),
    **{k: functools.partial(Path.write_bytes, data=v) for k, v in OTHER_JSON.items()},
}
FOREIGN: dict[str, Damage] = {
    "file": Path.touch,
    "link": lambda p: p.symlink_to("nowhere"),
    "folder": Path.mkdir,
}
FAILING = (
    "mkdir",
    "rename",
    "replace",
    "fsync",
    "open",
)  # functions of `os`, and the built-in open
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)
KILLED = 300  # steps of a run that is killed
MESHES = ("data=8", "data=4", "data=2,tensor=2", "data=1", "fsdp=2", "data=2")


class Row(NamedTuple):
    """All cases of one kind of fault."""

    fault: str
    cases: int
    code_0: int  # exit codes of the disturbed commands
    code_1: int
    code_2: int
    failures: int  # another exit code, a traceback, several lines of error, or another result
    first_failure: str


class Outcome(NamedTuple):
    """What one disturbed command, and the same command after it, did."""

    case: str
    code: int
    problem: str  # empty: all as it should be


def rows(scale: int) -> Iterator[Row]:
    """A row per kind of fault; the number of cases grows with the scale.

    Args:
        scale: 1: a few minutes of one core.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        code, error = call(whole)
        assert code == 0, error
        kinds: dict[str, Iterator[Outcome]] = {
            "failing system call": failing_calls(whole, scale),
            "full disk": full_disks(whole, range(0, 400, 50 // scale)),
            "damaged checkpoint": damaged_files(whole, "checkpoints"),
            "damaged log": damaged_files(whole, "."),
            "foreign files": foreign_files(whole),
            "another mesh": moves(whole, scale),
            "killed process": kills(whole, scale),
            "options": (Outcome(*case) for case in fuzz.options(200 * scale)),
            "library": (Outcome(*case) for case in fuzz.library(20 * scale)),
        }
        for fault, outcomes in kinds.items():
            yield summary(fault, list(outcomes))


def summary(fault: str, outcomes: list[Outcome]) -> Row:
    """The row of one kind of fault."""
    codes = Counter(outcome.code for outcome in outcomes)
    failed = [f"{outcome.case}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    return Row(fault, len(outcomes), codes[0], codes[1], codes[2], len(failed), *failed[:1] or [""])


def failing_calls(whole: Path, scale: int) -> Iterator[Outcome]:
    """Each function that writes fails at its k-th call below the run directory, for many k."""
    for index, name in enumerate(FAILING):
        for k in range(6 * scale):
            yield failing_call(whole, name, 2 * k, ERRORS[(index + k) % len(ERRORS)])


def failing_call(whole: Path, name: str, k: int, number: int) -> Outcome:
    """The k-th call of a function fails."""
    directory = whole.with_name("failing")
    shutil.rmtree(directory, ignore_errors=True)
    module: Any = io if name == "open" else os
    fake = _failing(getattr(module, name), str(directory), k, number)
    with mock.patch.object(module, name, fake):
        code, error = call(directory)
    problem = wrong(code, error) or repaired(whole, directory)
    return Outcome(f"{name} {k} {errno.errorcode[number]}", code, problem)


def _failing(real: Callable[..., Any], below: str, k: int, number: int) -> Callable[..., Any]:
    """A function that raises at its k-th call for a path below a directory, or for a file there."""
    left = [k]

    def call(path: Any, *arguments: Any, **keywords: Any) -> Any:
        name = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path
        reads = real is open and not set("wax+") & set(str(arguments[:1]) + str(keywords))
        if str(name).startswith(below) and not reads:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(number, os.strerror(number), str(name))
        return real(path, *arguments, **keywords)

    return call


def full_disks(whole: Path, room: Iterable[int]) -> Iterator[Outcome]:
    """Disks with so many KiB left; without the right to mount one, files of a limited size."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
            yield from limited_files(whole, [512 + 16 * kibibytes for kibibytes in room])
            return
        try:
            for kibibytes in room:
                shutil.rmtree(disk / "run", ignore_errors=True)
                (disk / "ballast").write_bytes(bytes((4096 - 64 - kibibytes) * 1024))
                code, error = call(disk / "run")
                (disk / "ballast").unlink()
                problem = wrong(code, error) or repaired(whole, disk / "run")
                yield Outcome(f"{kibibytes} KiB left", code, problem)
        finally:
            subprocess.run(["umount", folder], check=False)


def limited_files(whole: Path, limits: Iterable[int]) -> Iterator[Outcome]:
    """No file may have more than so many bytes, which the operating system lets anybody decide."""
    import resource  # not on Windows

    directory = whole.with_name("limited")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in limits:
        shutil.rmtree(directory, ignore_errors=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            code, error = call(directory)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        yield Outcome(
            f"files of {limit} bytes", code, wrong(code, error) or repaired(whole, directory)
        )


def damaged_files(whole: Path, where: str) -> Iterator[Outcome]:
    """Every file of the newest checkpoint, or of the run beside the checkpoints, damaged."""
    top = whole / "checkpoints" / "8" if where == "checkpoints" else whole
    files = sorted(p for p in top.rglob("*") if p.is_file() and p.name != ".lock")
    if where != "checkpoints":
        files = [p for p in files if "checkpoints" not in p.parts and p.name != "result.json"]
    for file in files:
        for kind, damage in DAMAGES.items():
            victim = copy(whole, "damaged") / file.relative_to(whole)
            if not victim.stat().st_size and kind not in ("removed", "5"):
                continue  # an empty file has nothing to change
            damage(victim)
            directory = whole.with_name("damaged")
            code, error = call(directory)
            problem = wrong(code, error)
            if file.name != "config.json" and not problem:  # without it nothing is a run
                problem = repaired(whole, directory, log=file.name != "metrics.jsonl")
            yield Outcome(f"{file.relative_to(whole)} {kind}", code, problem)


def foreign_files(whole: Path) -> Iterator[Outcome]:
    """Files, links and folders with names that checkpoints have."""
    for name in ("12", "12.unsealed", "12.removed", "9999999999", "007", "\u0663", "a.removed"):
        for kind, made in FOREIGN.items():
            directory = copy(whole, "foreign")
            made(directory / "checkpoints" / name)
            code, error = call(directory)
            yield Outcome(f"{kind} {name}", code, wrong(code, error) or repaired(whole, directory))


def moves(whole: Path, scale: int) -> Iterator[Outcome]:
    """A run that is stopped after every evaluation, and resumed on another mesh."""
    for start in range(min(scale, len(MESHES))):
        directory = whole.with_name(f"moved{start}")
        for k in range(3):
            mesh = MESHES[(start + k) % len(MESHES)]
            with stopped_before_batch(3):
                code, error = call(directory, mesh=mesh)
            problem = "" if code == 130 else f"exit code {code}: {error}"
            yield Outcome(mesh, 0 if code == 130 else code, problem)
        yield Outcome("data=1", 0, repaired(whole, directory, exact=False))


@contextlib.contextmanager
def stopped_before_batch(count: int) -> Iterator[None]:
    """Interrupts a run, as Control-C does, before it uses one of its batches."""
    left, real = [count], loop.split_batch

    def interrupt(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(*arguments)

    with mock.patch.object(loop, "split_batch", interrupt):
        yield


def kills(whole: Path, scale: int) -> Iterator[Outcome]:
    """SIGKILL at random moments of a process that trains."""
    long, directory = whole.with_name("long"), whole.with_name("killed")
    call(long, steps=KILLED)
    draw = np.random.default_rng(0)
    words = [sys.executable, "-m", "benchmarks", "faults", "--train", str(directory)]
    for kill in range(3 * scale):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            seen, deadline = numbers(directory), time.monotonic() + 300
            while process.poll() is None and numbers(directory) == seen:
                assert time.monotonic() < deadline, "the run does not start"
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.3))
            ended = process.poll() is not None
            process.kill()
        # A run that is killed often may have finished before.
        early = ended and not (directory / "result.json").exists()
        yield Outcome(f"kill {kill}", 0, "the run ended before it was killed" if early else "")
    yield Outcome("after the kills", 0, repaired(long, directory, steps=KILLED))
