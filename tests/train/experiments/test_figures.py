"""Pictures of comparisons: names, coinciding curves, order, and the files that are written."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from train import presets
from train.experiments import curve_pictures
from train.experiments.comparison import Curve
from train.experiments.figures import legend, ordered_colors, panels, readable, save
from train.experiments.runs import Outcome, Run
from train.optimizers import MiMuon, Muon

CONFIG = presets.load("lm").CONFIG


def outcomes(label, optimizer, values):
    lines = [{"step": 10 * i, "loss": value} for i, value in enumerate(values)]
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    return [Outcome(Run(label, "", 0, config), [], lines, None)]


def drawn(chosen, monkeypatch):
    """The axes of the picture of a validation loss."""
    kept = []
    monkeypatch.setattr(curve_pictures, "save", lambda figure, path: kept.extend(figure.axes))
    curve = Curve("loss", "validation", "loss")
    curve_pictures.draw_curve(curve, chosen, Path("x.png"), best=("loss", "min"))
    return kept[0]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_coinciding_curves_share_a_line_and_the_best_is_marked(monkeypatch: pytest.MonkeyPatch):
    chosen = {
        "mimuon_gap": outcomes("mimuon_gap", MiMuon(), [3, 2, 1.5]),
        "mimuon_rms": outcomes("mimuon_rms", MiMuon(), [3, 2, 1.5]),
        "muon": outcomes("muon", Muon(), [3, 2, 1.0]),
    }
    axes = drawn(chosen, monkeypatch)
    assert legend_of(axes) == ["MiMuon, gap = MiMuon, rms: 2 equal curves", "Muon (ends best)"]
    assert [line.get_linewidth() == 3 for line in axes.get_lines()] == [False, False, True]
    styles = {(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
    assert len(styles) == 3  # told apart in grey


def test_panels_share_a_legend_and_curves_a_line_only_where_all_coincide():
    figure, axes = panels(2)
    for name, end in (("muon", 2), ("mimuon_rms", 3), ("mimuon_gap", 2)):
        axes[0].plot([1, 2], [1, 2], label=name)
        axes[1].plot([1, 2], [1, end], label=name)
    legend(*axes)
    (shared,) = figure.legends
    texts = [text.get_text() for text in shared.get_texts()]
    assert texts == ["Muon = MiMuon, gap: 2 equal curves", "MiMuon, rms"]


def test_thresholds_have_colours_in_their_order(monkeypatch: pytest.MonkeyPatch):
    chosen = {
        f"mimuon {tau}": outcomes("mimuon", MiMuon(threshold=tau), [3, 2, tau]) for tau in (4, 1, 2)
    }
    axes = drawn(chosen, monkeypatch)
    light = [sum(to_rgb(line.get_color())) for line in axes.get_lines()]
    assert np.argsort(light).tolist() == [1, 2, 0]
    assert legend_of(axes) == ["MiMuon 4", "MiMuon 1 (ends best)", "MiMuon 2"]


def test_a_figure_is_written_in_three_formats_and_again_the_same(tmp_path: Path):
    def write(folder: Path) -> list[bytes]:
        folder.mkdir()
        figure, (axes,) = panels(1)
        axes.plot([1, 2], [1, 2], label="muon")
        legend(axes)
        save(figure, folder / "x.png")
        return [(folder / f"x.{kind}").read_bytes() for kind in ("png", "svg", "pdf")]

    first = write(tmp_path / "a")
    assert first == write(tmp_path / "b")
    assert (first[0][:4], first[2][:4]) == (b"\x89PNG", b"%PDF")
    assert b"<svg" in first[1]


def test_names_are_those_of_papers():
    assert readable("muon_mvr2") == "Muon-MVR2"
    assert readable("normuon") == "NorMuon"
    assert readable("muon with AdamW") == "Muon with AdamW"
    assert readable("mSGDZ") == "mSGDZ"
    light = [sum(to_rgb(color)) for color in ordered_colors([3.0, 1.0, 2.0])]
    assert np.argsort(light).tolist() == [1, 2, 0]
