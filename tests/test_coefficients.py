"""Schedules: the published numbers, optimality, and what a record accepts."""

import dataclasses

import numpy as np
import pytest

from mimuon_jax.linalg.coefficients import DION, JORDAN, POLAR_EXPRESS, Schedule, polar_express

# Listing 1 of arXiv 2505.16932, before its safety factor; further steps repeat the last.
PUBLISHED = np.array(
    [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
        (1.875, -1.25, 0.375),
        (1.875, -1.25, 0.375),
    ]
)


def image(schedule: Schedule, s: np.ndarray) -> np.ndarray:
    """What the schedule maps singular values ``s`` of ``X_0`` to, in float64."""
    for a, b, c in schedule.triples:
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("steps", range(1, 11))
def test_polar_express_reproduces_the_published_triples(steps):
    # Observed: 2e-14 for the first six, 6e-11 and 4e-9 for the next two, then 0.
    np.testing.assert_allclose(
        polar_express(steps, safety=1.0).triples, PUBLISHED[:steps], rtol=0, atol=5e-9
    )


@pytest.mark.parametrize("steps", [1, 6, 7, 8, 9])
def test_safety_divides_the_argument_of_every_step_but_the_last_from_eight_steps_on(steps):
    s = np.linspace(0, 1, 7)
    for step, scaled in enumerate(polar_express(steps, safety=1.05).triples):
        safety = 1.0 if steps >= 8 and step == steps - 1 else 1.05
        np.testing.assert_allclose(
            image(Schedule((scaled,)), s), image(Schedule((PUBLISHED[step].tolist(),)), s / safety),
            rtol=0, atol=1e-8,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "bar"), [(5, 0.16), (6, 0.006), (7, 2e-5), (8, 1e-9), (11, 1e-12)]
)
def test_polar_express_takes_its_interval_to_one(steps, bar):
    s = np.geomspace(1e-3, 1, 20001)
    assert np.abs(image(polar_express(steps), s) - 1).max() < bar


def test_the_first_step_equioscillates():
    """Chebyshev: an odd quintic is the closest one to 1 if its error alternates at four points."""
    s = np.geomspace(0.02407327424182761, 1, 200001)
    (triple,) = polar_express(1, safety=1.0).triples
    scale = 2 / (image(Schedule((triple,)), s).max() + image(Schedule((triple,)), s).min())
    error = scale * image(Schedule((triple,)), s) - 1
    turns = np.flatnonzero(np.diff(np.sign(np.diff(error))) != 0) + 1
    extremes = error[[0, *turns, -1]]
    assert len(extremes) == 4
    np.testing.assert_allclose(extremes * np.array([-1, 1, -1, 1]), np.abs(error).max(), rtol=1e-8)


def test_jordan_and_dion_stay_in_their_bands():
    s = np.geomspace(1e-3, 1, 20001)
    assert 0.46 < image(JORDAN, s).min() < image(JORDAN, s).max() < 1.21
    assert 0.46 < image(DION, s).min() < image(DION, s).max() < 1.16
    assert polar_express(6) == POLAR_EXPRESS
    assert (JORDAN.steps, DION.steps, POLAR_EXPRESS.steps) == (5, 5, 6)


def test_schedules_are_immutable_and_hashable_even_from_lists():
    listed = Schedule([[1.5, -0.5, 0.0]], prescale=1.02)
    assert hash(listed) == hash(Schedule(((1.5, -0.5, 0.0),), prescale=1.02))
    with pytest.raises(dataclasses.FrozenInstanceError):
        listed.prescale = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"triples": ()}, r"triples=\(\) has no step"),
        ({"triples": ((1.0, 2.0),)}, r"triples\[0\]=\(1.0, 2.0\) is not three finite"),
        ({"triples": ((1.0, 2.0, 3.0), (1.0, float("nan"), 0.0))}, r"triples\[1\].*finite"),
        ({"triples": ((1.0, 2.0, 3.0),), "prescale": 0.0}, r"prescale=0.0 is not a positive"),
    ],
)
def test_a_schedule_refuses_what_cannot_run(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


@pytest.mark.parametrize("steps", [0, -1, True])
def test_polar_express_refuses_step_counts(steps):
    with pytest.raises(ValueError, match=f"steps={steps} is not an integer of at least 1"):
        polar_express(steps)


@pytest.mark.parametrize("safety", [0.99, float("nan"), float("inf")])
def test_polar_express_refuses_safety_factors(safety):
    with pytest.raises(ValueError, match=f"safety={safety} is not a finite number"):
        polar_express(6, safety=safety)
