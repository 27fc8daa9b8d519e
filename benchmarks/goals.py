"""What an update on a GPU should reach, beside what was seen."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.time import Row
from benchmarks.training import Share

TORCH = ("gram-newton-schulz", "torch.optim.Muon")


class Goal(NamedTuple):
    """A ratio that should be at least, or at most, some number."""

    goal: str
    wanted: str
    seen: float
    ended: str  # "met", "missed" or "not measured"


def goals(rows: Iterable[NamedTuple], sets: Sequence[str]) -> Iterator[Goal]:
    """The goals on these sets of matrices, of which the first is the decoder's."""
    rows = list(rows)
    found = {(row.set, row.implementation): row for row in rows if isinstance(row, Row)}
    shares = [r.update / r.gradient for r in rows if isinstance(r, Share)][:1]
    share = shares[0] if shares else math.nan
    yield _goal("update / forward and backward", "<=", 0.15, share)
    standard = found.get((sets[0], "standard float16"))
    rate = standard.ceiling if standard else math.nan
    yield _goal("rate of standard float16 / rate of a large product", ">=", 0.7, rate)
    for name in sets:
        default = found.get((name, "default"))
        ratio = default.ratio if default else math.nan
        yield _goal(f"time of optax / time of default: {name}", ">=", 4.0, ratio)
        for other in TORCH:
            row = found.get((name, other))
            ratio = default.seconds / row.seconds if default and row else math.nan
            yield _goal(f"time of default / time of {other}: {name}", "<=", 1.0, ratio)


def _goal(goal: str, sign: str, limit: float, seen: float) -> Goal:
    """Judges what was seen."""
    if math.isnan(seen):
        return Goal(goal, f"{sign} {limit}", seen, "not measured")
    met = seen <= limit if sign == "<=" else seen >= limit
    return Goal(goal, f"{sign} {limit}", seen, "met" if met else "missed")
