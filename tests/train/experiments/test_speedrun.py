"""Steps to a loss: the rule for significance, the report, and the experiment's own setting."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train import experiments
from train.errors import BadInput
from train.experiments import comparison, speedrun, steps_to_target
from train.experiments.runs import Outcome, Run
from train.experiments.steps_to_target import Speedrun, race
from train.optimizers import AdamW, Muon
from train.tasks.language_model import LanguageModel

pytestmark = pytest.mark.standard_promotion

STEPS = np.asarray([0, 10, 20, 30])
LOSSES = {
    "muon": np.asarray([[3.0, 2.0, 1.5, 1.01], [3.0, 2.0, 1.5, 0.99]]),
    "fast": np.asarray([[3.0, 1.2, 0.9, 0.81], [3.0, 1.2, 0.9, 0.79]]),
    "slow": np.asarray([[3.0, 2.5, 2.2, 1.31], [3.0, 2.5, 2.2, 1.29]]),
    "stopped": np.asarray([[3.0, 1.0, 0.9, 0.8], [3.0, 1.0, np.inf, np.inf]]),
}


def test_the_bar_is_that_of_the_measured_deviation():
    found = race(LOSSES, STEPS, None, "muon")
    deviation = np.std([1.01, 0.99], ddof=1)  # as of the others; the one that stopped has none
    assert found.bar == pytest.approx(3.09 * deviation)
    assert found.target == pytest.approx(1.0 + found.bar / 2**0.5)


def test_steps_to_the_target():
    found = race(LOSSES, STEPS, None, "muon")
    assert [found.reached(name) for name in LOSSES] == [30, 20, None, 10]
    given = race(LOSSES, STEPS, 1.0, "muon")
    assert given.reached("muon") is None  # its mean is the target, which may be chance
    assert given.reached("fast") == 20


def test_better_means_better_beyond_chance():
    found = race(LOSSES, STEPS, None, "muon")
    assert found.beats("fast", "muon")
    assert not found.beats("muon", "fast")
    assert not found.beats("stopped", "muon")
    assert found.beats("muon", "slow")
    close = {"muon": LOSSES["muon"], "close": LOSSES["muon"] - 0.04}
    assert not race(close, STEPS, None, "muon").beats("close", "muon")  # bar: 0.0437


@pytest.fixture
def small_run(
    small: Callable[..., LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Speedrun:
    """An experiment of runs that are not trained."""

    def train(planned: Run, say: Callable[[str], None]) -> Outcome:
        del say
        losses = LOSSES[{"muon": "muon", "adamw": "fast"}[planned.label]][planned.seed]
        lines = [
            {"step": int(step), "loss": loss, "wall": {"seconds": float(step)}}
            for step, loss in zip(STEPS, losses, strict=True)
        ]
        return Outcome(planned, lines, lines, None)

    monkeypatch.setattr(comparison, "train", train)
    monkeypatch.setattr(comparison, "step_memory", lambda run: 1.5)
    monkeypatch.setattr(comparison, "clear", lambda: None)
    return Speedrun(
        title="two",
        config=small(tmp_path),
        optimizers={"muon": Muon(), "adamw": AdamW(), "other": AdamW()},
        first=("muon", "adamw"),
        columns=speedrun.COLUMNS,
        curves=speedrun.CURVES,
    )


def report(experiment: Speedrun, directory: Path, **options: Any) -> Any:
    options = {"seeds": (0, 1), "sweep": None} | options
    return experiment.run(directory, say=lambda line: None, **options)


def test_the_report_begins_with_the_steps(small_run: Speedrun, tmp_path: Path):
    found = report(small_run.with_optimizers(None), tmp_path)
    muon, adamw = found.tables[0].rows
    assert muon == ["muon", 30, "100%", "1.0000 ± 0.0141", 2, "0.0437", "reference"]
    assert adamw[:3] == ["adamw", 20, "67%"]
    assert adamw[-1] == "yes"
    assert "validation loss of 1.0309, what muon passes at its end" in found.text[0]


def test_some_of_the_optimizers(small_run: Speedrun, tmp_path: Path):
    assert list(small_run.with_optimizers(("muon", "other")).optimizers) == ["muon", "other"]
    with pytest.raises(BadInput, match="--optimizers: lion is not compared here; choose from muon"):
        small_run.with_optimizers(("lion",))
    with pytest.raises(BadInput, match="--optimizers must have muon"):
        report(small_run.with_optimizers(("adamw",)), tmp_path)
    with pytest.raises(BadInput, match="needs --seeds 2 or more"):
        report(small_run.with_optimizers(None), tmp_path, seeds=(0,))


def test_every_scale_trains_the_same_way_with_every_optimizer():
    for scale in experiments.load("speedrun").SCALES.values():
        assert scale.reference in scale.optimizers
        assert set(scale.first) <= set(scale.optimizers)
        assert {o.cooldown for o in scale.optimizers.values()} == {0.7}
        assert (scale.config.steps % scale.config.evaluate_every) == 0
    track = speedrun.SCALES["track3"].config
    assert track.batch_size * track.data.sequence_length == 524_288
    assert pytest.approx(0.004, rel=0.01) == steps_to_target.DEVIATIONS * 0.0013  # the track's


@pytest.mark.slow
def test_a_small_speedrun(small: Callable[..., LanguageModel], tmp_path: Path, text_file: Path):
    experiment = speedrun.SCALES["small"].with_optimizers(("muon", "normuon"))
    config: Any = experiment.config
    config = dataclasses.replace(
        config,
        steps=4,
        evaluate_every=2,
        checkpoint_every=4,
        mesh="data=1",
        data=dataclasses.replace(config.data, path=text_file, sequence_length=16),
        model=dataclasses.replace(config.model, n_embd=16, n_layer=1, n_head=2),
        sample=dataclasses.replace(config.sample, length=4),
    )
    found = report(dataclasses.replace(experiment, config=config, sweep=None), tmp_path)
    assert [row[0] for row in found.tables[0].rows] == ["muon", "normuon"]
    assert found.tables[0].rows[0][1] == 4
