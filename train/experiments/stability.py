"""Algorithmic stability: how far apart do two runs end whose training sets differ in one sample?

The MiMuon paper proves a generalization error of O(1 / (N kappa^T)) for Muon and of O(1 / N) for
MiMuon, with N samples, T steps, and kappa the smallest gap between singular values of the gradient
estimate. It measures neither. Here a small network is trained on handwritten digits, on many pairs
of sets that differ in one sample, with equal initial weights and equal indices.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mimuon_jax import mimuon, muon, sgdm
from train.config_json import differences, to_json
from train.errors import BadInput, require
from train.experiments.runs import conditions, read_arrays
from train.experiments.stability_pictures import Found, draw_distances, draw_generalization
from train.experiments.twins import Lane, Pool, Trajectory, digits_pool, draw_lane, trajectories
from train.files import write_atomically
from train.integrity import read_json
from train.report import Picture, Report, Table, mean_and_spread
from train.run_directory import record_environment

Chosen: TypeAlias = dict[str, tuple[float, Trajectory]]  # learning rate and trajectories

THRESHOLD = 5e-3  # the paper's, for the language model

# Every optimizer treats every weight as a matrix, as the theory does.
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": lambda rate: sgdm(rate, momentum=0.0),
    "sgdm": lambda rate: sgdm(rate, momentum=0.9),
    "muon": lambda rate: muon(rate, momentum=0.9, nesterov=False),
    "muon_svd": lambda rate: muon(rate, momentum=0.9, nesterov=False, orthogonalizer="svd"),
    "mimuon_rms": lambda rate: mimuon(rate, threshold=THRESHOLD, momentum=0.9),
    "mimuon_gap": lambda rate: mimuon(rate, threshold=THRESHOLD, measure="gap", momentum=0.9),
    "mimuon_peak": lambda rate: mimuon(rate, threshold=0.3, relative_to="peak", momentum=0.9),
    "mimuon_average": lambda rate: mimuon(rate, threshold=1, relative_to="average", momentum=0.9),
    "mimuon_noise": lambda rate: mimuon(rate, threshold=2, relative_to="noise", momentum=0.9),
}

RATES = {"sgd": 0.3, "sgdm": 0.03}  # the middle one of the rates that are tried
OTHER_RATE = 0.01
FACTORS = (1 / 3, 1.0, 3.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability:
    """One scale of the experiment."""

    sizes: tuple[int, ...]  # N, increasing
    pairs: int  # per size and seed
    steps: int  # T
    records: int  # number of records; divides the steps
    batch: int  # samples per step
    widths: tuple[int, ...]  # hidden layers

    def run(
        self,
        directory: Path,
        *,
        seeds: Sequence[int],
        sweep: str | None,
        say: Callable[[str], None],
    ) -> Report:
        """Trains with every optimizer and learning rate, and reports."""
        require(sweep is None, "stability always tries three learning rates; leave --sweep out")
        _check_same(self, seeds, directory)
        pool = digits_pool()
        require(
            self.sizes[-1] < len(pool.labels),
            f"N = {self.sizes[-1]} is too large: there are {len(pool.labels)} samples to draw from",
        )
        lanes = self._lanes(seeds, len(pool.labels))
        chosen: Chosen = {}
        for name in OPTIMIZERS:
            tried = {
                rate: self._trajectories(name, rate, lanes, pool, directory, say)
                for rate in (RATES.get(name, OTHER_RATE) * factor for factor in FACTORS)
            }
            best = min(tried, key=lambda rate, tried=tried: self._final(tried[rate].held_loss))
            chosen[name] = best, tried[best]
        return self._report(chosen, directory, seeds)

    def with_data(self, **fields: Path) -> NoReturn:
        """Refuses: the data is fixed."""
        raise BadInput(f"stability has its own data; leave {' and '.join(fields)} out")

    def _lanes(self, seeds: Sequence[int], pool: int) -> Lane:
        """All seeds' pairs, each in all sizes."""
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        keys = jax.vmap(lambda key: jax.random.split(key, self.pairs))(keys).reshape(-1)
        draw = functools.partial(draw_lane, pool=pool, largest=self.sizes[-1])
        every = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, jnp.asarray(self.sizes))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), every)

    def _trajectories(
        self, name: str, rate: float, lanes: Lane, pool: Pool, directory: Path, say: Callable
    ) -> Trajectory:
        """The trajectories of an optimizer, `[pair, size, record]`; cached in a file."""
        path = directory / f"{name},learning_rate={rate:.4g}.npz"
        if not path.exists():
            say(f"{name}, learning rate {rate:.4g}: {self.steps} steps of {len(lanes.size)} pairs")
            record_environment(directory)
            found = trajectories(
                lanes,
                pool,
                jnp.asarray(rate, jnp.float32),
                make=OPTIMIZERS[name],
                widths=self.widths,
                records=self.records,
                every=self.steps // self.records,
                batch=self.batch,
            )
            arrays = {k: np.asarray(v) for k, v in found._asdict().items()}
            temporary = path.with_name(f".{path.name}")
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
            temporary.replace(path)
        stored, shape = read_arrays(path), (-1, len(self.sizes), self.records)
        return Trajectory(*(stored[name].reshape(shape) for name in Trajectory._fields))

    def _final(self, values: Any) -> float:
        """The mean over pairs at the largest N and the last step; NaN counts as worst."""
        mean = float(values[:, -1, -1].mean())
        return mean if math.isfinite(mean) else math.inf

    def _report(self, chosen: Chosen, directory: Path, seeds: Sequence[int]) -> Report:
        """Tables and pictures for the chosen learning rates."""
        found = {name: trajectory for name, (_, trajectory) in chosen.items()}
        steps = np.arange(1, self.records + 1) * (self.steps // self.records)
        draw_distances(found, steps, self.sizes, directory / "distance.png")
        draw_generalization(found, steps, self.sizes, directory / "generalization.png")
        pairs = next(iter(found.values())).distance.shape[0]
        return Report(
            title=f"Stability: two training sets that differ in one of N samples, T = {self.steps}",
            text=[
                (
                    f"{pairs} pairs of sets for every N ({self.pairs} per seed); a network 64-"
                    f"{'-'.join(map(str, self.widths))}-10 without biases on scikit-learn's "
                    f"digits, with {self.batch} samples per step at a constant learning rate. Each "
                    f"optimizer was tried with {len(FACTORS)} learning rates; the one with the "
                    f"lowest held-out loss at N = {self.sizes[-1]} is reported."
                ),
                (
                    f"mimuon_rms and mimuon_gap open their gates at {THRESHOLD}, in the unit of "
                    "heavy-ball momentum 0.9; mimuon_peak, mimuon_average and mimuon_noise at 0.3, "
                    "1 and 2 times that reference; muon_svd is exact, the others orthogonalize by "
                    "Newton-Schulz. kappa is the smallest gap between two singular values of any "
                    "matrix's momentum at the records."
                ),
            ],
            tables=[self._summary(chosen), self._by_size(found)],
            pictures=[
                Picture(directory / "distance.png", "Distance of the two trajectories"),
                Picture(directory / "generalization.png", "Generalization gap, and kappa"),
            ],
            conditions=conditions([directory], seeds),
        )

    def _summary(self, chosen: Chosen) -> Table:
        """One row per optimizer, at the largest N and the last step."""
        rows = []
        for name, (rate, t) in chosen.items():
            last: Any = t._replace(**{k: v[:, -1, -1] for k, v in t._asdict().items()})
            gates = float(t.gate[:, -1].mean())
            rows.append(
                [
                    name,
                    rate,
                    mean_and_spread(last.train_loss, 3),
                    mean_and_spread(last.held_loss, 3),
                    mean_and_spread(last.distance, 3),
                    mean_and_spread(last.distance / last.travelled, 3),
                    slope(self.sizes, t.distance[:, :, -1].mean(0)),
                    slope(self.sizes, t.loss_change[:, :, -1].mean(0)),
                    slope(self.sizes, (t.held_loss - t.train_loss)[:, :, -1].mean(0)),
                    float(np.median(last.kappa)),
                    None if math.isnan(gates) else gates,
                ]
            )
        return Table(
            name="stability",
            title=f"At N = {self.sizes[-1]}, T = {self.steps}: mean ± standard deviation (pairs)",
            columns=[
                "optimizer",
                "learning rate",
                "training loss (nats)",
                "held-out loss (nats)",
                "distance",
                "distance / distance from W_0",
                "slope of distance in N",
                "slope of loss change in N",
                "slope of generalization gap in N",
                "kappa, median",
                "open gates",
            ],
            rows=rows,
            note="Slopes are log-log over all N: -1 is O(1/N), 0 does not depend on N.",
        )

    def _by_size(self, found: Found) -> Table:
        """One row per optimizer and N, at the last step."""
        rows = []
        for name, t in found.items():
            for i, size in enumerate(self.sizes):
                last = {k: v[:, i, -1] for k, v in t._asdict().items()}
                means = [
                    last["distance"],
                    last["loss_change"],
                    last["train_loss"],
                    last["held_loss"] - last["train_loss"],
                ]
                kappa = float(np.median(last["kappa"]))
                rows.append([f"{name}, N = {size}", *(float(x.mean()) for x in means), kappa])
        return Table(
            name="by_size",
            title=f"By N, T = {self.steps}: means over pairs",
            columns=[
                "run",
                "distance",
                "|change of loss| (nats)",
                "training loss (nats)",
                "generalization gap (nats)",
                "kappa, median",
            ],
            rows=rows,
        )


def slope(x: Sequence[float], y: Any) -> float | None:
    """The slope of log y over log x, by least squares; None if any y is not positive.

    Example:
        >>> slope([1, 10, 100], np.array([5.0, 0.5, 0.05]))
        -1.0
    """
    if not (np.isfinite(y).all() and (y > 0).all()):
        return None
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 6)


def _check_same(settings: Stability, seeds: Sequence[int], directory: Path) -> None:
    """Refuses a directory with results of other settings."""
    path, now = directory / "settings.json", {"seeds": list(seeds), **to_json(settings)}
    if path.exists():
        try:
            before = read_json(path, dict)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} is damaged ({error}); choose another folder") from error
        found = differences(before, now)
        require(not found, f"{directory} holds results of other settings: {'; '.join(found)}")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(now, indent=2) + "\n")


SCALES = {
    "small": Stability(
        sizes=(50, 100, 200, 400, 800), pairs=8, steps=400, records=20, batch=8, widths=(32,)
    ),
    "paper": Stability(
        sizes=(50, 100, 200, 400, 800, 1400),
        pairs=32,
        steps=4000,
        records=40,
        batch=8,
        widths=(128, 128),
    ),
}
