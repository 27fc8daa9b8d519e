"""What every run is configured by, its JSON form, and the comparison of two configurations."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from train.errors import require
from train.optimizers import MiMuon, Optimizer

if TYPE_CHECKING:
    import jax

    from train.task import Task

# Fields that may change between two calls on one run directory: they move no number of the run.
MAY_CHANGE = frozenset(
    {"run_dir", "mesh", "mesh_axes", "checkpoint_every", "keep_checkpoints", "data.cache"}
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: task, data, model, optimizer and durations. Tasks add their fields in a subclass."""

    preset: Annotated[str, tyro.conf.Suppress]
    """Name of the preset this configuration started from; names the default run directory."""

    run_dir: Path | None = None
    """Folder for configuration, metrics, curve, samples and checkpoints (None: runs/PRESET). The
    same command on the same folder resumes."""

    steps: int = 300
    """Length of the run, in optimizer steps."""

    batch_size: int = 16
    """Examples a step, over all devices."""

    evaluate_every: int = 50
    """Distance of two evaluations on the held-out split, in steps; the last step has one too."""

    checkpoint_every: int | None = None
    """Distance of two checkpoints, in steps, a multiple of evaluate_every (None: the same); the
    last step has one too."""

    keep_checkpoints: int = 2
    """Newest checkpoints kept, beside the one of the best evaluation."""

    seed: int = 0
    """Seed of initial weights, data order and sampling."""

    micro_batches: int = 1
    """Parts that a batch is divided into; their gradients are averaged one after another, so that
    activations need the memory of one part."""

    mesh: str = "data=-1"
    """Device mesh as AXIS=SIZE,...; -1, once, takes every device that is left. Axes: data (splits
    the batch), fsdp (splits the batch and the weights), tensor (splits the weights)."""

    mesh_axes: Literal["auto", "explicit"] = "auto"
    """auto: the compiler lays out what no rule says; explicit: parameters, gradients and optimizer
    state have their layout in their types, so that a change of it is an error."""

    optimizer: Optimizer = dataclasses.field(default_factory=MiMuon)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value} must be at least 1")
        require(
            self.keep_checkpoints >= 1,
            f"keep_checkpoints={self.keep_checkpoints} must be at least 1: the newest is what a "
            "killed run resumes from",
        )
        require(0 <= self.seed < 2**31, f"seed={self.seed} must lie in 0 .. 2147483647")
        require(
            (self.checkpoint_every or 0) % self.evaluate_every == 0,
            f"checkpoint_every={self.checkpoint_every} must be a multiple of "
            f"evaluate_every={self.evaluate_every}: a checkpoint is ranked by its evaluation",
        )
        require(
            (self.optimizer.warmup_steps or 0) < self.steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be less than "
            f"steps={self.steps}",
        )

    @property
    def directory(self) -> Path:
        """The run directory, defaults resolved."""
        return self.run_dir if self.run_dir is not None else Path("runs") / self.preset

    def task(self, mesh: "jax.sharding.Mesh") -> "Task":
        """Builds the task (data, model, loss, evaluation) on a mesh; every subclass defines it."""
        raise TypeError(
            f"{type(self).__name__} defines no task; use a subclass of Config that does"
        )


def to_json(config: Any) -> Any:
    """Returns a configuration as JSON values: dataclasses as objects with their `type`.

    Paths become strings, tuples lists, and floats that JSON lacks (inf, nan) strings.

    Example:
        >>> to_json(MiMuon(threshold=math.inf))["threshold"]
        'inf'
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
    if isinstance(config, (list, tuple)):
        return [to_json(value) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    return str(config)


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Lists where two configurations in JSON form differ, as `steps is 300 there and 400 here`.

    A difference of type (another optimizer) stands for all fields below it; `MAY_CHANGE` is left
    out.

    Example:
        >>> differences({"steps": 300, "mesh": "data=1"}, {"steps": 400, "mesh": "data=2"})
        ['steps is 300 there and 400 here']
    """
    if before.get("type") != now.get("type"):
        where = prefix.rstrip(".") or "the task"
        return [f"{where} is {before.get('type')} there and {now.get('type')} here"]
    found = []
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old == new or prefix + name in MAY_CHANGE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name} is {json.dumps(old)} there and {json.dumps(new)} here")
    return found
