"""Comparisons: what is tried and trained, what is kept, and that reports say what was measured."""

import csv
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from models.classifier import ResNetConfig
from models.params import matrix_dimension_numbers
from train import cli, compare, experiments
from train.data.text import embedded_text
from train.errors import BadInput
from train.experiments import comparison, curve_pictures, runs
from train.experiments.comparison import Column, Comparison, Curve
from train.experiments.runs import Outcome, Run
from train.experiments.sweep import candidates, parse_sweeps
from train.mesh import make_mesh
from train.optimizers import OPTIMIZERS, AdamW, MiMuon, Muon, MuonMVR2, make_optimizer
from train.report import Picture, Report, Table, write_report
from train.tasks.classification import Classification

pytestmark = pytest.mark.standard_promotion

CONFIG = Classification(
    preset="tiny",
    steps=4,
    batch_size=8,
    evaluate_every=2,
    mesh="data=1",
    model=ResNetConfig(channels=1, width=4, blocks=(1,)),
)
TWO = Comparison(
    title="two",
    config=CONFIG,
    optimizers={"muon": Muon(learning_rate=0.02), "adamw": AdamW(learning_rate=0.01)},
    columns=(Column("validation loss", "validation", "loss"),),
    curves=(Curve("validation loss", "validation", "loss"),),
    paper={"muon": 4.141},
)


LOSSES = {"muon": 0.04, "mimuon": 0.04, "adamw": 0.01}  # the best learning rates


def losses(run: Run) -> float:
    """The final loss of a pretended run."""
    rate = run.config.optimizer.learning_rate
    return abs(rate - LOSSES[run.label]) + 1 + 0.1 * run.seed


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that are not trained; those of muon above 0.05 stop."""
    seen: list[Run] = []

    def train(planned: Run, say: Callable[[str], None]) -> Outcome:
        del say
        seen.append(planned)
        values = [2.0 + planned.seed, losses(planned)]
        lines = [
            {"step": 2 * i, "loss": value, "wall": {"seconds": float(i)}}
            for i, value in enumerate(values)
        ]
        stopped = planned.label == "muon" and planned.config.optimizer.learning_rate > 0.05
        return Outcome(planned, lines, lines, "loss is nan" if stopped else None)

    monkeypatch.setattr(comparison, "train", train)
    monkeypatch.setattr(comparison, "step_memory", lambda run: 1.5)
    monkeypatch.setattr(comparison, "clear", lambda: None)
    return seen


def report(directory: Path, **options: Any) -> Report:
    """The report of a pretended comparison."""
    options = {"seeds": (0, 1, 2), "sweep": "learning_rate=x1,x2,x3"} | options
    return TWO.run(directory, say=lambda line: None, **options)


def test_every_optimizer_has_the_same_tries_and_its_best_has_all_seeds(
    pretended: list[Run], tmp_path: Path
):
    report(tmp_path)
    tried = {
        label: [(r.setting, r.seed) for r in pretended if r.label == label]
        for label in ("muon", "adamw")
    }
    assert tried["muon"] == [
        ("", 0),
        ("learning_rate=0.04", 0),
        ("learning_rate=0.06", 0),
        ("learning_rate=0.04", 1),
        ("learning_rate=0.04", 2),
    ]
    assert [seed for setting, seed in tried["adamw"] if setting == ""] == [0, 1, 2]
    assert len(tried["adamw"]) == len(tried["muon"])
    assert len({r.directory for r in pretended}) == len(pretended)


def test_the_report_says_what_the_runs_did(pretended: list[Run], tmp_path: Path):
    results, tried = report(tmp_path).tables
    muon, adamw = results.rows
    assert muon[:3] == ["muon", "learning_rate=0.04", "1.1000 ± 0.1000"]
    assert adamw[:3] == ["adamw", "learning_rate=0.01 (its own)", "1.1000 ± 0.1000"]
    assert muon[-1] == 4.141
    assert adamw[-1] is None
    stopped = [row for row in tried.rows if "stopped" in row]
    assert [row[1] for row in stopped] == ["learning_rate=0.06"]  # failures stay in
    assert [row[1] for row in tried.rows if row[-1] == "chosen"] == [
        "learning_rate=0.04",
        "learning_rate=0.01 (its own)",
    ]
    assert (tmp_path / "curve-1.png").stat().st_size > 1000


def test_without_a_sweep_every_optimizer_has_its_own_setting(pretended: list[Run], tmp_path: Path):
    (results,) = report(tmp_path, sweep="none", seeds=(0, 1)).tables
    assert [row[1] for row in results.rows] == ["its own", "its own"]
    assert [(r.label, r.setting, r.seed) for r in pretended] == [
        ("muon", "", 0),
        ("muon", "", 1),
        ("adamw", "", 0),
        ("adamw", "", 1),
    ]


def test_runs_that_do_not_start_alike_are_no_comparison(
    pretended: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inner = comparison.train

    def train(planned: Run, say: Any) -> Outcome:
        outcome = inner(planned, say)
        outcome.validation[0]["loss"] += 1e-3 * (planned.label == "muon")
        return outcome

    monkeypatch.setattr(comparison, "train", train)
    with pytest.raises(BadInput, match="start from different losses"):
        report(tmp_path)


def test_two_gradients_a_step_count_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(curve_pictures, "band", lambda axes, x, *rest, **more: seen.append(list(x)))
    lines = [{"step": step, "loss": 1.0} for step in (1, 2)]
    chosen = {
        name: [Outcome(Run(name, "", 0, dataclasses.replace(CONFIG, optimizer=o)), lines, [], None)]
        for name, o in (("muon", Muon()), ("muon_mvr2", MuonMVR2()))
    }
    for per in ("step", "gradient"):
        curve = Curve("loss", "train", "loss", per=per)
        curve_pictures.draw_curve(curve, chosen, tmp_path / "x.png", best=("loss", "min"))
    assert seen == [[1, 2], [1, 2], [1, 2], [2, 4]]


def overfitted() -> Outcome:
    """A run of 40 steps whose training loss falls by 0.1 per step from 5, evaluated every tenth."""
    training = [{"step": step, "loss": 5 - 0.1 * step} for step in range(1, 41)]
    values = {0: 5.0, 10: 4.2, 20: 3.6, 30: 3.4, 40: 3.8}
    held_out = [{"step": step, "loss": x, "accuracy": 1 / x} for step, x in values.items()]
    return Outcome(Run("muon", "", 0, CONFIG), training, held_out, None)


def test_columns_are_values_of_different_times_of_a_run():
    run, at = overfitted(), ("validation", "loss")
    last_tenth = 5 - 0.1 * 38.5
    values = {
        Column("", *at): 3.8,
        Column("", *at, at="best"): 3.4,
        Column("", "validation", "accuracy", at="best", best="max"): 1 / 3.4,
        Column("", "train", "loss"): last_tenth,
        Column("", "train", "loss", at="mean"): 5 - 0.1 * 20.5,
        Column("", "gap", "loss"): 3.8 - last_tenth,
        # Training losses around steps 10, 20 and 30 are 4, 3 and 2.
        Column("", *at, at=3.0): 3.6,
        Column("", *at, at=2.5): 3.5,
    }
    for column, value in values.items():
        assert column.value(run) == pytest.approx(value), column
    assert np.isnan(Column("", *at, at=0.5).value(run))  # never reached
    stopped = run._replace(stopped="loss is nan")
    for column in values:
        assert np.isnan(column.value(stopped))


def test_differences_are_of_the_same_seed(pretended: list[Run], tmp_path: Path):
    against = dataclasses.replace(TWO, against=("muon", "sgd"))
    columns = ("sweep", "none"), ("seeds", (0, 1)), ("say", lambda line: None)
    _, differences = against.run(tmp_path, **dict(columns)).tables
    # Adam's loss is 1 and 1.1, Muon's 1.02 and 1.12: their difference does not vary.
    assert differences.rows == [["adamw", "-0.0200 ± 0.0000 (higher for 0 of 2)"]]


def test_step_times_are_between_steps_of_one_start():
    seconds = [0.0, 1.0, 1.5, 0.2, 0.8]  # started again after the third
    lines = [{"step": i, "wall": {"seconds": s}} for i, s in enumerate(seconds)]
    outcome = Outcome(Run("", "", 0, CONFIG), lines, [], None)
    assert outcome.step_seconds() == pytest.approx(0.6)


@pytest.mark.parametrize(
    "text",
    [
        *("", "learning_rate", "learning_rate=", "=1", "learning_rate=1,x2", "p=a", "p=1,1"),
        *("p=1 p=2", "p=1 q"),
    ],
)
def test_a_sweep_that_is_no_list_is_refused(text: str):
    with pytest.raises(BadInput, match="--sweep"):
        parse_sweeps(text)


def test_sweeps_need_an_option_that_is_a_number():
    for text in ("threshold=1", "auxiliary_learning_rate=x2"):
        with pytest.raises(BadInput, match="--sweep"):
            candidates(Muon(), parse_sweeps(text))
    settings = candidates(Muon(), parse_sweeps("momentum=0.5,0.95"))
    assert [o.momentum for o in settings.values()] == [0.5, 0.95]
    assert list(settings) == ["momentum=0.5", ""]


def test_several_options_are_tried_in_all_combinations():
    own = MiMuon(learning_rate=0.02, threshold=0.005)
    found = candidates(own, parse_sweeps("learning_rate=x0.5,x1 threshold=x1,x4"))
    assert {name: (o.learning_rate, o.threshold) for name, o in found.items()} == {
        "learning_rate=0.01": (0.01, 0.005),
        "learning_rate=0.01,threshold=0.02": (0.01, 0.02),
        "": (0.02, 0.005),
        "threshold=0.02": (0.02, 0.02),
    }


def test_a_threshold_is_a_dimension_of_the_same_number_of_tries(
    pretended: list[Run], tmp_path: Path
):
    own = dataclasses.replace(
        TWO,
        optimizers={"muon": Muon(learning_rate=0.02), "mimuon": MiMuon(learning_rate=0.02)},
        sweep="learning_rate=x0.5,x1,x2,x4",
        sweeps={"mimuon": "learning_rate=x1,x2 threshold=x1,x4"},
    )
    results, tried = own.run(tmp_path, seeds=(0, 1), sweep=None, say=lambda line: None).tables
    assert [row[1] for row in results.rows] == [
        "learning_rate=0.04",
        "learning_rate=0.04, threshold=0.005",
    ]
    assert [row[0] for row in tried.rows] == ["muon"] * 4 + ["mimuon"] * 4
    with pytest.raises(BadInput, match=r"different numbers of tries: .*'mimuon': 3"):
        dataclasses.replace(own, sweeps={"mimuon": "threshold=1,2,3"}).run(
            tmp_path, seeds=(0,), sweep=None, say=lambda line: None
        )


def test_the_page_needs_no_other_file(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG picture")
    table = Table("t", "<losses>", ["optimizer", "loss"], [["muon", 0.123456789], ["sgd", None]])
    page = write_report(
        Report("A & B", ["text"], [table], [Picture(tmp_path / "a.png", "p")], [("seeds", "0, 1")]),
        tmp_path,
    ).read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in page
    assert "data:image/png;base64,iVBORyBwaWN0dXJl" in page
    assert "A &amp; B" in page
    assert "&lt;losses&gt;" in page
    rows = list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))
    assert rows == [["optimizer", "loss"], ["muon", "0.123456789"], ["sgd", ""]]
    assert "| muon      | 0.1235 |" in (tmp_path / "report.md").read_text()


def test_every_experiment_has_both_scales_and_known_optimizers():
    names = {"gate", "gate_classify", "mvr", "mvr_lm", "spectral", "speedrun"}
    names |= {"stability", "table2", "table3"}
    on_one_gpu = {"gate", "mvr_lm", "spectral", "table2"}
    assert names == set(experiments.names())
    for name in experiments.names():
        module = experiments.load(name)
        others = ["gpu", "track3"] if name == "speedrun" else ["paper"]
        others = ["gpu", *others] if name in on_one_gpu else others
        assert list(module.SCALES) == ["small", *others]
        for scale in module.SCALES.values():
            inner = getattr(scale, "comparison", scale)
            for optimizer in getattr(inner, "optimizers", {}).values():
                assert type(optimizer) in OPTIMIZERS.values()


@pytest.mark.parametrize("name", ["gate", "mvr_lm", "spectral", "table2"])
def test_the_scale_for_one_gpu_builds(name: str):
    scale = experiments.load(name).SCALES["gpu"]
    found = getattr(scale, "comparison", scale)
    params, _ = jax.eval_shape(found.config.architecture()[1], jax.random.key(0))
    assert 20e6 <= sum(x.size for x in jax.tree.leaves(params)) <= 60e6
    assert found.config.compute_dtype == "bfloat16"
    assert found.config.sample.length < found.config.positions
    for optimizer in found.optimizers.values():
        made, _ = make_optimizer(optimizer, steps=10, matrices=matrix_dimension_numbers)
        jax.eval_shape(made.init, params)


def test_the_small_decoder_sees_little_text_many_times():
    config = experiments.load("table2").SCALES["small"].config
    text = len(embedded_text()) * (1 - config.data.held_out)
    assert 20e3 <= text <= 100e3
    seen = config.steps * config.batch_size * config.data.sequence_length
    assert 4 <= seen / text <= 12


@pytest.mark.slow
def test_every_small_comparison_can_start():
    for name in experiments.names():
        scale = experiments.load(name).SCALES["small"]
        found = getattr(scale, "comparison", scale)
        if isinstance(found, Comparison):
            task = found.config.task(make_mesh("data=1"))
            assert found.best in (task.best, ("accuracy", "max"))
            for optimizer in found.optimizers.values():
                make_optimizer(optimizer, steps=found.config.steps, matrices=task.matrices)


MISTAKES = {
    "compare": "name an experiment first: python -m train compare gate|gate_classify|mvr|",
    "compare table9": "experiment 'table9' is unknown (did you mean table",
    "compare mvr --seeds 0": "seeds=0 must be at least 1",
    "compare mvr --scale large": "--scale needs small, paper, gpu or track3, not large",
    "compare speedrun --scale paper": "not a scale of speedrun; choose from small, gpu, track3",
    "compare speedrun --optimizers lion": "--optimizers: lion is not compared here; choose from",
    "compare stability --optimizers muon": "--optimizers: stability compares a fixed list",
    "compare mvr --sweep rate=1": "has no option 'rate'",
    "compare mvr --scale gpu": "--scale gpu is not a scale of mvr; choose from small, paper",
    "compare mvr --validation x": "the task's data has no validation",
    "compare stability --sweep p=1": "leave --sweep out",
    "compare stability --data x": "leave path out",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert MISTAKES[command] in error


def test_damaged_arrays_are_named(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", rates=np.arange(50.0))
    np.testing.assert_array_equal(runs.read_arrays(tmp_path / "a.npz")["rates"], np.arange(50.0))
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (b"", b"[]", content[:-5], content[:60] + b"xx" + content[62:]):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(BadInput, match=r"a\.npz is damaged .* remove it"):
            runs.read_arrays(tmp_path / "a.npz")


@pytest.mark.slow
def test_a_comparison_resumes_keeps_what_ended_and_reports_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = experiments.load("mvr")
    small = dataclasses.replace(
        module.SCALES["small"],
        config=dataclasses.replace(CONFIG, optimizer=Muon()),
        optimizers={"muon_mvr2": MuonMVR2(), "adamw": AdamW()},
        sweep=None,
    )
    monkeypatch.setitem(module.SCALES, "small", small)
    options = compare.Compare(seeds=2, run_dir=tmp_path / "mvr")
    started, inner = [], runs.run

    def interrupt(config: Any, **keywords: Any) -> Any:
        started.append(config.directory)
        if len(started) == 3:
            raise KeyboardInterrupt
        return inner(config, **keywords)

    monkeypatch.setattr(runs, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare.run_experiment("mvr", options)
    page = compare.run_experiment("mvr", options)
    text = page.with_name("report.md").read_text()
    assert "| muon_mvr2 " in text
    assert "2 of 2" in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert len(before) == 4
    for path in tmp_path.rglob("memory.json"):  # what is damaged meanwhile is measured again
        path.write_text("[]")
    for path in tmp_path.rglob("environment.jsonl"):
        path.write_bytes(path.read_bytes() + b'[]\n{"versions": 5}\n{')
    compare.run_experiment("mvr", options)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert page.read_text().count("data:image/png") == len(small.curves)
