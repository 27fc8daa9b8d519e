"""A run of a second that writes all that runs write: least squares on made-up rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh

from train.config import Config
from train.files import write_atomically
from train.task import Task

ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Regression(Config):
    """Fits a 4 x 4 matrix to a signed permutation."""

    def task(self, mesh: Mesh) -> Task:
        """Draws the rows and builds the functions."""
        del mesh
        x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
        y = x[:, ::-1] * np.array([1, -1, 1, -1], np.float32)
        size = self.batch_size

        def batch(k: int) -> tuple[np.ndarray, np.ndarray]:
            rows = np.arange(size * k, size * (k + 1)) % ROWS
            return x[rows], y[rows]

        def evaluate(params: Any, model_state: Any) -> dict[str, float]:
            del model_state
            return {"loss": float(_error(params, (x, y)))}

        return Task(
            init=_init,
            loss=_loss,
            batches=grain.MapDataset.range(10**6).map(batch),
            evaluate=evaluate,
            finish=_finish,
            matrices=None,
            sharding_rules=[(".*", P())],
            items_per_step=size,
            unit="rows",
            loss_unit="squares",
            data={"rows": ROWS},
            files={"note.txt": "rows of a signed permutation\n"},
        )


def _init(key: Any) -> tuple[Any, Any]:
    """Small random weights, and a counter of steps."""
    return {"kernel": 0.1 * jax.random.normal(key, (4, 4))}, {"count": jnp.int32(0)}


def _loss(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
    """The mean square error of a batch."""
    del key, step
    return _error(params, batch), ({"count": model_state["count"] + 1}, {})


def _error(params: Any, rows: Any) -> Any:
    """The mean square error of rows."""
    x, y = rows
    return ((x @ params["kernel"] - y) ** 2).mean()


def _finish(params: Any, model_state: Any, directory: Path) -> str:
    """Writes how many steps were counted."""
    del params
    write_atomically(directory / "sample.txt", f"{int(model_state['count'])} steps\n")
    return "done"
