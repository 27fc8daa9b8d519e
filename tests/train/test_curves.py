"""The curves of a run: what is drawn, and what is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from train.curves import draw_curves
from train.gates import GateLog, draw_gates

TRAIN = [{"step": k, "split": "train", "loss": 4.0 - k} for k in range(1, 4)]
VALIDATION = [
    {"step": 0, "split": "validation", "loss": 4.0, "fitness": 0.1},
    {"step": 2, "split": "validation", "loss": 2e4, "fitness": 0.2},
    {"step": 3, "split": "validation", "loss": 1.5, "fitness": 0.6},
]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from records to the axes drawn from them."""

    def draw(records: list[dict[str, Any]], best: str) -> list[Any]:
        figures: list[Any] = []

        def save(self: Figure, path: Path, **_: Any) -> None:
            figures.append(self)
            path.touch()

        monkeypatch.setattr(Figure, "savefig", save)
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        draw_curves(path, tmp_path / "loss.png", title="a run", loss_unit="nats", best=best)
        return figures[0].get_axes()

    return draw


def test_one_wild_evaluation_does_not_flatten_the_others(drawn: Any):
    (axes,) = drawn([*TRAIN, *VALIDATION], "loss")
    train, validation = axes.get_lines()
    np.testing.assert_array_equal(train.get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(validation.get_ydata(), [4.0, np.nan, 1.5])
    assert validation.get_label() == "validation (1 above 9 left out)"
    assert axes.get_ylim()[1] < 9
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "loss (nats)")


def test_steps_without_a_number_are_gaps(drawn: Any):
    (axes,) = drawn([TRAIN[0], {**TRAIN[1], "loss": None}, TRAIN[2], VALIDATION[0]], "loss")
    train, validation = axes.get_lines()
    np.testing.assert_array_equal(train.get_ydata(), [3.0, np.nan, 1.0])
    assert validation.get_label() == "validation"


def test_what_the_best_checkpoint_is_chosen_by_has_a_picture(drawn: Any):
    _, other = drawn([*TRAIN, *VALIDATION], "fitness")
    np.testing.assert_array_equal(other.get_lines()[0].get_ydata(), [0.1, 0.2, 0.6])
    assert other.get_ylabel() == "validation fitness"


def test_names_with_dollars_are_not_formulas(tmp_path: Path):
    name = r"$\no formula$"  # as a formula, an error
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in TRAIN))
    log = GateLog(tmp_path / "gates.bits", step=0)
    log.write({name: np.array(True)})
    log.close()
    curve, gates = tmp_path / "loss.png", tmp_path / "gates.png"
    draw_curves(tmp_path / "metrics.jsonl", curve, title=name, loss_unit="nats", best="loss")
    draw_gates(tmp_path / "gates.bits", gates, title=name)
    assert curve.stat().st_size > 0
    assert gates.stat().st_size > 0
