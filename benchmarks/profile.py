"""Where the time of a program goes: its kernels, from a trace of one call."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Kernel(NamedTuple):
    """One kernel of one call of a program; on a CPU, one operation."""

    program: str
    kernel: str
    calls: int
    milliseconds: float  # of all calls
    share: float  # in the time of all kernels


def kernels(program: str, call: Callable[[], Any], number: int = 12) -> Iterator[Kernel]:
    """The kernels of one call that take the most time, and the sum of all others.

    Args:
        program: its name, for the rows.
        call: a program that has run before; returns arrays.
        number: how many kernels.

    Raises:
        RuntimeError: the trace has no kernels.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    found: dict[str, list[float]] = defaultdict(list)
    for name, nanoseconds in _events(data):
        found[name].append(nanoseconds / 1e6)
    total = sum(map(sum, found.values()))
    if not total:
        raise RuntimeError(f"the trace has no kernels, but {[p.name for p in data.planes]}")
    ranked = sorted(found.items(), key=lambda item: -sum(item[1]))
    rest = [x for _, times in ranked[number:] for x in times]
    for name, times in [*ranked[:number], ("all others", rest)]:
        yield Kernel(program, name[:60], len(times), sum(times), sum(times) / total)


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """Names and nanoseconds of kernels: of a GPU's streams or, without one, of CPU operations."""
    planes = {plane.name: list(plane.lines) for plane in data.planes}
    streams = [
        line
        for name, lines in planes.items()
        if name.startswith("/device:GPU")
        for line in lines
        if line.name.startswith("Stream")  # other lines group the same kernels
    ]
    for line in streams or planes.get("/host:CPU", []):
        for event in line.events:
            if streams or any(name == "hlo_op" for name, _ in event.stats):
                yield event.name, event.duration_ns
