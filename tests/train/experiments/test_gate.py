"""The gate: what is measured along a run is what the run's own gate decided."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train import experiments
from train.experiments.spectra import Spectra, kind
from train.metrics import read_metrics
from train.optimizers import MiMuon
from train.report import write_report

pytestmark = pytest.mark.standard_promotion


def test_open_rates_are_shares_of_matrices():
    values = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    s = Spectra(np.array([1, 2]), ("up/0/kernel", "up/1/kernel", "down/kernel"), {"rms": values})
    np.testing.assert_allclose(s.open_rate("rms", 2.0), [2 / 3, 1 / 3])
    np.testing.assert_allclose(s.open_rate("rms", 2.0, "up"), [0.5, 0.0])
    assert s.kinds() == ["down", "up"]
    assert kind("kernel") == "kernel"


@pytest.mark.slow
def test_measures_along_a_run_give_the_decisions_of_its_gate(
    small: Callable[..., object], tmp_path: Path
):
    config = small(tmp_path / "unused", steps=4)
    whole = experiments.load("gate").SCALES["small"]
    gated = MiMuon(threshold=0.03)  # some matrices are above it, some below
    bounds = {"mimuon_rms": gated, "sgdm": dataclasses.replace(gated, threshold=math.inf)}
    tiny = dataclasses.replace(
        whole,
        comparison=dataclasses.replace(whole.comparison, config=config, optimizers=bounds),
        along=("mimuon_rms",),
        records=4,
    )
    report = tiny.run(tmp_path, seeds=(0,), sweep=None, say=lambda line: None)
    lines = read_metrics(tmp_path / "mimuon_rms" / "seed-0" / "metrics.jsonl")
    decided = [line["gate_rate"] for line in lines if line["split"] == "train"]
    with np.load(tmp_path / "spectra-mimuon_rms.npz") as stored:
        measured = Spectra(stored["steps"], tuple(stored["paths"]), {"rms": stored["rms"]})
    np.testing.assert_allclose(measured.open_rate("rms", 0.03), decided, atol=1e-6)
    assert 0 < np.mean(decided) < 1
    assert [table.name for table in report.tables] == [
        "results",
        "open_rate",
        "open_rate_by_kind_mimuon_rms",
    ]
    assert write_report(report, tmp_path).read_text().count("data:image/png") == 3
