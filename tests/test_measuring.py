"""How benchmarks measure: parts in processes, times of queued calls, files, goals."""

import functools
import json
import math
import os
import subprocess
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu, table
from benchmarks import time as timing
from benchmarks.goals import goals
from benchmarks.isolated import Part, guarded, isolated
from benchmarks.profile import kernels
from benchmarks.time import Row, medians
from benchmarks.training import Share

SETS = ("decoder", "detector")


class Number(NamedTuple):
    """A row."""

    number: int


@pytest.mark.parametrize(
    ("function", "arguments", "seconds", "rows"),
    [
        (range, (2,), 60, [0, 1, "done"]),
        (int, ("x",), 60, ["ValueError: invalid literal for int() with base 10: 'x'"]),
        (os.abort, (), 60, ["crashed with exit code -6"]),
        (time.sleep, (60,), 0.4, ["stopped after 0 s"]),
    ],
    ids=["done", "raises", "crashes", "hangs"],
)
def test_a_part_says_how_it_ended(function, arguments, seconds, rows):
    assert list(isolated(function, arguments, seconds)) == rows


def test_what_a_part_has_started_ends_with_it():
    # A line is a string, as is the end of a part: the shell still runs then.
    (line,) = isolated(os.popen, ("echo $$; exec sleep 60",), 60)
    command = ["ps", "-o", "stat=", "-p", line.strip()]
    state = ""
    for _ in range(50):
        state = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout
        if not state.strip() or state.startswith("Z"):  # gone, or waits for its parent to notice
            return
        time.sleep(0.1)
    pytest.fail(f"process {line} is still there: {state}")


def test_rows_before_an_error_are_kept(capsys):
    def rows():
        yield Number(1)
        raise MemoryError("out of\nmemory")

    first, last = guarded("large", rows())
    assert first == Number(1)
    assert (last.part, last.ended) == ("large", "MemoryError: out of memory")
    assert "Traceback" in capsys.readouterr().err


def test_parts_that_fail_or_come_too_late_do_not_stop_the_others(monkeypatch):
    for name in ("DIR", "MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES"):  # the command sets them
        prefix = "JAX_COMPILATION_CACHE" if name == "DIR" else "JAX_PERSISTENT_CACHE"
        monkeypatch.setenv(f"{prefix}_{name}", os.environ.get(f"{prefix}_{name}", "0"))
    parts = [
        ("crashes", os.abort, (), 20, 20),
        ("works", range, (1,), 20, 20),
        ("late", range, (1,), 57, 20),
    ]
    monkeypatch.setattr(gpu, "_parts", lambda *_: iter(parts))
    crashed, number, worked, late, *found = gpu.rows(
        gpu.TINY._replace(sets=SETS), 1, None, 60.0, "cpu"
    )
    assert (crashed.part, crashed.ended) == ("crashes", "crashed with exit code -6")
    assert number == 0
    assert (worked.part, worked.ended) == ("works", "done")
    assert late.ended.startswith("skipped")
    assert {goal.ended for goal in found} == {"not measured"}


def test_short_functions_are_queued_and_alternate(monkeypatch):
    took = {"short": 1e-4, "long": 0.02}
    calls, clock = [], [0.0]

    def run(name, times):
        calls.append((name, times))
        clock[0] += took[name] * times

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    seconds = medians({name: functools.partial(run, name) for name in took}, 2)
    assert seconds == pytest.approx(took)
    assert calls[4:] == [("short", 20), ("long", 3)] * 2


def test_the_file_is_whole_after_every_row(tmp_path):
    path = tmp_path / "rows.json"

    def rows():
        yield Number(1)
        assert [row["number"] for row in json.loads(path.read_text())["rows"]] == [1]
        yield Part("last", 2.0, "done")

    assert len(table.stream(rows(), path, ["a card"])) == 2
    record = json.loads(path.read_text())
    assert (len(record["rows"]), record["devices"]) == (2, ["a card"])
    assert record["versions"]["jax"] == jax.__version__
    assert list(tmp_path.iterdir()) == [path]


def row(name, implementation, seconds, ratio=math.nan, ceiling=math.nan):
    return Row(name, implementation, seconds, ratio, 0.0, 1.0, ceiling, 1.0, 1.0)


def test_goals_are_met_missed_or_not_measured():
    rows = [
        Share("default", 1, 1.0, 0.15, 0.13),
        row("decoder", "standard float16", 1.0, ceiling=0.69),
        row("decoder", "default", 1.0, ratio=4.0),
        row("decoder", "torch.optim.Muon", 0.5),
        row("detector", "default", 1.0, ratio=3.9),
    ]
    ended = [(goal.seen, goal.ended) for goal in goals(rows, SETS) if goal.ended != "not measured"]
    assert ended == [
        (0.15, "met"),
        (0.69, "missed"),
        (4.0, "met"),
        (2.0, "missed"),
        (3.9, "missed"),
    ]
    assert {goal.ended for goal in goals([], SETS)} == {"not measured"}


@pytest.mark.slow
def test_kernels_of_a_program_are_listed_by_time():
    square = jax.jit(lambda x: jnp.sin(x @ x))
    x = jax.random.normal(jax.random.key(0), (256, 256))
    square(x)
    *found, others = kernels("square", lambda: square(x), number=1)
    assert [row.program for row in found] == ["square"]
    assert found[0].milliseconds >= others.milliseconds
    assert sum(row.share for row in [*found, others]) == pytest.approx(1.0)
