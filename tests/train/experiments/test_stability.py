"""Twins: equal sets stay together, and what is recorded is what two plain trainings give."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax import muon, sgdm
from mimuon_jax.linalg.measures import gap
from train import experiments
from train.experiments.stability import Stability, slope
from train.experiments.twins import (
    Pool,
    draw_lane,
    initial_weights,
    losses,
    trajectories,
)
from train.report import write_report

pytestmark = pytest.mark.standard_promotion


def pool() -> Pool:
    """Twenty samples of four features."""
    rng = np.random.default_rng(0)
    features, held = (rng.normal(size=(count, 4)).astype(np.float32) for count in (20, 6))
    labels, held_labels = (rng.integers(0, 10, count).astype(np.int32) for count in (20, 6))
    return Pool(*map(jnp.asarray, (features, labels, held, held_labels)))


def test_a_slope_needs_positive_numbers():
    assert slope([1, 2, 4], np.array([8.0, 4.0, 2.0])) == -1.0
    assert slope([1, 2], np.array([1.0, -1.0])) is None


@pytest.mark.slow
def test_twins_are_two_plain_trainings():
    data, rate, batch = pool(), 0.3, 3
    lanes = jax.vmap(lambda key: draw_lane(key, jnp.asarray(4), pool=20, largest=8))(
        jax.random.split(jax.random.key(0), 2)
    )
    same = lanes._replace(other=lanes.rows[:, 0])
    settings = {"widths": (5,), "records": 2, "every": 3, "batch": batch}
    make = lambda rate: sgdm(rate, momentum=0.9)  # noqa: E731
    found = trajectories(lanes, data, jnp.asarray(rate), make=make, **settings)
    together = trajectories(same, data, jnp.asarray(rate), make=make, **settings)
    # The twins of one set differ by roundings only.
    np.testing.assert_allclose(together.distance, 0, atol=1e-6)
    np.testing.assert_allclose(together.loss_change, 0, atol=1e-6)
    assert float(found.distance.min()) > 1e-4

    lane = jax.tree.map(lambda x: x[0], lanes)
    weights_key, index_key = jax.random.split(lane.key)
    start = initial_weights(weights_key, (4, 5, 10))
    steps = [jax.random.randint(key, (3, batch), 0, 4) for key in jax.random.split(index_key, 2)]
    ends, gaps = [], []
    for first in (lane.rows[0], lane.other):  # the set, and its twin
        rows = lane.rows.at[0].set(first)
        params, momentum = start, jax.tree.map(jnp.zeros_like, start)
        for index in jnp.concatenate(steps):
            chosen = rows[index]
            gradients = jax.grad(
                lambda p, i=chosen: losses(p, data.features[i], data.labels[i]).mean()
            )(params)
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
            params = jax.tree.map(lambda p, m: p - rate * m, params, momentum)
        ends.append(params)
        gaps.append(min(float(gap(m)) for m in momentum.values()))
    ours, theirs = ends
    norm = lambda a, b: sum(float(jnp.sum((a[k] - b[k]) ** 2)) for k in a) ** 0.5  # noqa: E731
    assert float(found.distance[0, -1]) == pytest.approx(norm(ours, theirs), rel=1e-4)
    assert float(found.travelled[0, -1]) == pytest.approx(norm(ours, start), rel=1e-4)
    mine = lane.rows[:4]
    train = losses(ours, data.features[mine], data.labels[mine]).mean()
    assert float(found.train_loss[0, -1]) == pytest.approx(float(train), rel=1e-4)
    assert float(found.kappa[0, -1]) <= gaps[0] * (1 + 1e-3) + 1e-6


@pytest.mark.slow
def test_the_experiment_reports_and_keeps_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = experiments.load("stability")
    two = {"sgd": module.OPTIMIZERS["sgd"], "muon": lambda rate: muon(rate, nesterov=False)}
    monkeypatch.setattr(module, "OPTIMIZERS", two)
    small = Stability(sizes=(8, 16), pairs=2, steps=4, records=2, batch=2, widths=(4,))
    said: list[str] = []
    report = small.run(tmp_path, seeds=(0,), sweep=None, say=said.append)
    assert [row[0] for row in report.tables[0].rows] == ["sgd", "muon"]
    assert len(said) == 6  # three rates each
    known = dict(report.conditions)
    assert known["seeds"] == "0"
    assert f"jax {jax.__version__}" in known["versions"]
    page = write_report(report, tmp_path)
    again = small.run(tmp_path, seeds=(0,), sweep=None, say=said.append)
    assert len(said) == 6
    assert again.tables == report.tables
    assert page.stat().st_size > 10_000
    with pytest.raises(Exception, match="results of other settings: steps"):
        dataclasses.replace(small, steps=8).run(tmp_path, seeds=(0,), sweep=None, say=said.append)
