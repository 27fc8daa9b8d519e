"""The gates that are compared by how well they generalize, and what is reported of them."""

import dataclasses

from train.experiments.comparison import Column, Curve
from train.optimizers import MiMuon, Optimizer

NOTE = (
    "muon_plain is MiMuon with threshold 0, so only the gate distinguishes the others from it. "
    "mimuon and mimuon_gap have absolute thresholds, of the root mean square and of the smallest "
    "gap between singular values. peak, average and noise are what the root mean square is divided "
    "by (relative_to)."
)
#: Of Muon, which has no threshold, as many tries as the gates have.
MUON_SWEEP = "learning_rate=x0.25,x0.5,x1,x2"
ABSOLUTE_SWEEP = "learning_rate=x0.5,x1 threshold=x1,x4"
RELATIVE_SWEEP = "learning_rate=x0.5,x1 threshold=x1,x2"


def gates(tuned: MiMuon, *, rms: float, gap: float) -> dict[str, Optimizer]:
    """Muon without Nesterov, and MiMuon with every kind of threshold.

    Args:
        tuned: the settings that all share.
        rms: the lower of the two absolute thresholds to try of the root mean square.
        gap: the same of the smallest gap between singular values.
    """
    changes = {
        "muon_plain": {"threshold": 0.0},
        "mimuon": {"threshold": rms},
        "mimuon_gap": {"threshold": gap, "measure": "gap"},
        "mimuon_peak": {"threshold": 0.3, "relative_to": "peak"},
        "mimuon_average": {"threshold": 0.5, "relative_to": "average"},
        "mimuon_noise": {"threshold": 2.0, "relative_to": "noise"},
    }
    return {name: dataclasses.replace(tuned, **fields) for name, fields in changes.items()}


SWEEPS = {
    "mimuon": ABSOLUTE_SWEEP,
    "mimuon_gap": ABSOLUTE_SWEEP,
    "mimuon_peak": RELATIVE_SWEEP,
    "mimuon_average": RELATIVE_SWEEP,
    "mimuon_noise": RELATIVE_SWEEP,
}


def columns(unit: str, level: float) -> tuple[Column, ...]:
    """Losses as in the paper's table 2, at a training loss, and how often gates were open.

    Args:
        unit: of the loss.
        level: a training loss that most reach.
    """
    return (
        Column(f"training loss, last tenth ({unit})", "train", "loss"),
        Column(f"final validation loss ({unit})", "validation", "loss"),
        Column(f"best validation loss ({unit})", "validation", "loss", at="best"),
        Column(f"validation loss at training loss {level}", "validation", "loss", at=level),
        Column(f"gap, final validation - training ({unit})", "gap", "loss"),
        Column("open gates, whole run", "train", "gate_rate", digits=3, at="mean"),
    )


def curves(unit: str) -> tuple[Curve, ...]:
    """Losses and open gates over a run.

    Args:
        unit: of the loss.
    """
    return (
        Curve(f"validation loss ({unit})", "validation", "loss"),
        Curve(f"training loss ({unit})", "train", "loss"),
        Curve("share of open gates", "train", "gate_rate"),
    )
