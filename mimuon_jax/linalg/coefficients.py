"""Coefficients of the Newton-Schulz iteration, each set kept together with its pre-scale.

A schedule of ``K`` triples maps every singular value ``s`` of ``X_0`` to ``f_K(...f_1(s))`` with
``f_i(s) = a_i s + b_i s^3 + c_i s^5``, and leaves the singular vectors alone. A good schedule maps
an interval ``[l, 1]`` close to 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

Triple = tuple[float, float, float]

#: Polar Express is optimal on the interval [_LOWER, 1]; smaller singular values only grow.
_LOWER = 1e-3

#: The paper's cushion: a step is optimized on [max(l, cushion u), u] instead of [l, u]. That keeps
#: the slope at 0 finite, and makes no difference once l is above the cushion.
_CUSHION = 0.02407327424182761

#: From this many steps on, the interval has shrunk to rounding before the last step. That step then
#: has no safety factor, which would leave a bias (0.5 % in bfloat16 at 7 steps).
_UNSCALED_LAST_STEP = 8


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Coefficients of one Newton-Schulz iteration, and the pre-scale that they were made for.

    The iteration starts at ``X_0 = M / (prescale ||M||_F)`` and step ``i`` is
    ``X <- a_i X + b_i (X X^T) X + c_i (X X^T)^2 X``. Instances are immutable and hashable, so a
    schedule can be a static argument of ``jax.jit``.

    Attributes:
      triples: ``(a, b, c)`` of each step, in order; stored as tuples.
      prescale: factor of the Frobenius norm in the division; 1 if the triples already contain a
        safety factor.
      source: where the coefficients come from.

    Raises:
      ValueError: there is no triple, a triple is not three finite numbers, the pre-scale is not
        positive and finite, or a singular value in (0, 1] would not stay positive.

    Example:
      >>> from mimuon_jax.linalg.coefficients import Schedule
      >>> cubic = Schedule(triples=((1.5, -0.5, 0.0),) * 12, source="Newton-Schulz, order 3")
      >>> cubic.steps, cubic.prescale
      (12, 1.0)
    """

    triples: Sequence[Sequence[float]]
    prescale: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        triples = tuple(tuple(map(float, triple)) for triple in self.triples)
        if not triples:
            raise ValueError("triples=() has no steps; give at least one (a, b, c)")
        for step, triple in enumerate(triples):
            if len(triple) != 3 or not all(map(math.isfinite, triple)):
                raise ValueError(f"triples[{step}]={triple} is not three finite numbers (a, b, c)")
        if not (math.isfinite(self.prescale) and self.prescale > 0):
            raise ValueError(f"prescale={self.prescale} is not a positive finite number")
        _check_signs(triples, self.prescale)
        # Tuples can be hashed, lists cannot.
        object.__setattr__(self, "triples", triples)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.triples)


def _check_signs(triples: Sequence[Sequence[float]], prescale: float) -> None:
    """Raises if the iteration turns the sign of a singular value."""
    start = np.concatenate([np.geomspace(1e-6, 1e-2, 500), np.linspace(1e-2, 1.0, 4000)])
    s = start / prescale
    with np.errstate(over="ignore", invalid="ignore"):
        for a, b, c in triples:
            s = a * s + b * s**3 + c * s**5
    if not np.all(s > 0):
        worst = int(np.argmin(np.where(np.isnan(s), -np.inf, s)))
        raise ValueError(
            f"triples={tuple(triples)} map a singular value of {start[worst]:.3g} of the norm to "
            f"{s[worst]:.3g}: updates of nearly rank 1 would have the wrong sign (as with the "
            "older AOL coefficients, 4.0098, -7.0585, ...); use a schedule that stays positive"
        )


def polar_express(steps: int, *, safety: float = 1.01) -> Schedule:
    """The composition of ``steps`` odd quintics that is closest to 1 on ``[1e-3, 1]``.

    Step ``i`` minimizes ``max |1 - p(s)|`` among ``p(s) = a s + b s^3 + c s^5`` over the interval
    that the previous steps produce; the greedy choice is optimal. As the interval closes, the
    triples approach Newton-Schulz of order 5, ``(15/8, -10/8, 3/8)``.

    The safety factor is folded into the triples, which become
    ``(a / safety, b / safety^3, c / safety^5)``: each step divides its argument by it. The
    pre-scale is therefore 1. From 8 steps on, the last step has no safety factor. Singular values
    of ``X_0`` below 1e-3 do not converge: 6 steps map 1e-4 to about 0.17.

    Args:
      steps: number of steps, at least 1. The error on the interval is 0.15 after 5 steps, 0.006
        after 6 and 1e-7 after 8 (float32).
      safety: at least 1. It leaves room for rounding above the interval. 1 suits exact arithmetic,
        1.01 was enough in every precision measured, 1.05 costs accuracy.

    Returns:
      The schedule.

    Raises:
      ValueError: ``steps`` is not an integer of at least 1, or ``safety`` is not a finite number of
        at least 1.

    Source: Amsel, Persson, Musco, Gower, "The Polar Express" (arXiv 2505.16932), sections 3 and 4.

    Example:
      >>> from mimuon_jax.linalg.coefficients import polar_express
      >>> polar_express(6).steps
      6
      >>> [round(number, 4) for number in polar_express(1, safety=1.0).triples[0]]
      [8.2872, -23.5959, 17.3004]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} is not an integer of at least 1")
    if not (math.isfinite(safety) and safety >= 1):
        raise ValueError(f"safety={safety} is not a finite number of at least 1")
    optimal = _optimal_triples(steps)
    triples = [(a / safety, b / safety**3, c / safety**5) for a, b, c in optimal]
    if steps >= _UNSCALED_LAST_STEP:
        triples[-1] = optimal[-1]
    return Schedule(tuple(triples), source=f"Polar Express (arXiv 2505.16932), safety {safety}")


@functools.cache
def _optimal_triples(steps: int) -> tuple[Triple, ...]:
    """The triples without a safety factor, composed greedily from ``[_LOWER, 1]``."""
    lower, upper = _LOWER, 1.0
    triples = []
    for _ in range(steps):
        a, b, c = _best_quintic(max(lower, _CUSHION * upper), upper)
        # The cushion moves the image of [lower, upper] off centre; scale it back to centre 1.
        image = a * np.array([lower, upper]) + b * np.array([lower, upper]) ** 3
        image += c * np.array([lower, upper]) ** 5
        centre = 2 / image.sum()
        triples.append((float(a * centre), float(b * centre), float(c * centre)))
        lower = min(float(image[0] * centre), 1.0)
        upper = 2 - lower
    return tuple(triples)


def _best_quintic(lower: float, upper: float) -> tuple[float, float, float]:
    """The odd quintic closest to 1 on ``[lower, upper]``, by the exchange algorithm of Remez."""
    if lower / upper >= 1 - 5e-6:  # the 4 x 4 system below is singular to float64: take the limit
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    inner = np.array([(3 * lower + upper) / 4, (lower + 3 * upper) / 4])
    solution, previous = np.zeros(4), math.inf
    for _ in range(100):
        # p(s_j) = 1 - (-1)^j error at four points: optimal once the inner two are extrema of p.
        points = np.array([lower, *inner, upper])
        system = np.stack([points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        solution = np.linalg.solve(system, np.ones(4))
        a, b, c, error = solution
        if abs(error - previous) < 1e-15:
            break
        previous = error
        root = math.sqrt(9 * b**2 - 20 * a * c)  # p'(s) = a + 3 b s^2 + 5 c s^4 = 0
        inner = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
    return float(solution[0]), float(solution[1]), float(solution[2])


#: Five equal steps, steep at 0. They map [1e-3, 1] to [0.47, 1.2], not to 1.
JORDAN = Schedule(((3.4445, -4.7750, 2.0315),) * 5, source="Jordan et al., Muon (2024)")

#: Five steps by You, optax's preset "dion": as accurate as Jordan's, and less steep at 0.
DION = Schedule(
    (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    source="Jiacheng You; the preset 'dion' of optax.contrib.muon",
)

#: The default: singular values above 1e-3 of the norm end within 0.006 of 1 (float32).
POLAR_EXPRESS = polar_express(6)
