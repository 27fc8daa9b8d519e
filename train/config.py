"""The configuration of a run."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro

from train.distributed import Processes
from train.errors import require
from train.optimizers import MiMuon, Optimizer
from train.precision import Precision

if TYPE_CHECKING:
    import jax

    from train.task import Init, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: task, data, model, optimizer and durations. Tasks add fields in a subclass."""

    preset: Annotated[str, tyro.conf.Suppress]
    """Name of the preset that this configuration came from, and of the default run directory."""

    run_dir: Path | None = None
    """Folder for configuration, metrics, curve, samples and checkpoints (None: runs/PRESET). The
    same command on the same folder resumes the run."""

    pretrained: Path | None = None
    """Where the initial weights come from: the directory of a run, a folder that `export` wrote, or
    a Hugging Face folder with a Qwen3 or GPT-2, whose architecture is used. --model options must
    agree with it; a class head of another size starts at random. None: random weights."""

    steps: int = 300
    """Length of the run, in optimizer steps."""

    batch_size: int = 16
    """Examples per step, over all devices."""

    evaluate_every: int = 50
    """Interval between evaluations, in steps; the last step is always evaluated."""

    checkpoint_every: int | None = None
    """Interval between checkpoints, in steps, a multiple of evaluate_every (None: the same); the
    last step is always saved."""

    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, besides the one with the best evaluation."""

    seed: int = 0
    """Seed for initial weights, data order and sampling."""

    profile: bool = False
    """Write a JAX trace of three steps into the run directory, for TensorBoard's profile page."""

    log: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "wandb"], ...]] = ()
    """tensorboard or wandb, besides metrics.jsonl. TensorBoard's files go to RUN_DIR/tensorboard,
    wandb is Weights & Biases; the option may be given twice, for both."""

    micro_batches: int = 1
    """Number of parts of a batch, computed one after another and averaged, so that activations
    need the memory of one part only."""

    max_skipped_steps: int = 10
    """Stop after this many consecutive steps whose loss or gradient is not finite. Such a step is
    skipped: it changes nothing, and training continues with the next batch."""

    precision: Precision = "default"
    """Precision of the model's float32 products. default: JAX's, which is fast (TF32 on NVIDIA
    GPUs, one pass in bfloat16 on TPUs, float32 on CPUs); high: three passes on TPUs; highest:
    float32 everywhere. Products in bfloat16 and those of the Muon family do not change."""

    mesh: str = "data=-1"
    """Device mesh as AXIS=SIZE,...; one size may be -1, for all remaining devices. Axes: data
    (shards the batch), fsdp (shards the batch and the weights), tensor (shards the weights)."""

    mesh_axes: Literal["auto", "explicit"] = "auto"
    """auto: the compiler chooses shardings that no rule fixes; explicit: shardings are part of the
    types of parameters, gradients and optimizer state, so that changing one is an error."""

    processes: Processes = dataclasses.field(default_factory=Processes)

    optimizer: Optimizer = dataclasses.field(default_factory=MiMuon)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "micro_batches",
            "evaluate_every",
            "checkpoint_every",
            "max_skipped_steps",
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value} must be at least 1")
        require(
            self.keep_checkpoints >= 1,
            f"keep_checkpoints={self.keep_checkpoints} must be at least 1: the newest is what a "
            "killed run resumes from",
        )
        require(0 <= self.seed < 2**31, f"seed={self.seed} must be in 0 .. 2147483647")
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
        """The run directory, with the default filled in."""
        return self.run_dir if self.run_dir is not None else Path("runs") / self.preset

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are evaluated."""
        return self.optimizer.lookahead > 0

    @property
    def best(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that chooses the best checkpoint, and which direction is better."""
        return "loss", "min"

    @property
    def class_head(self) -> str | None:
        """Regular expression for the paths of arrays whose sizes depend on the classes."""
        return None

    def init(self, directory: Path) -> "Init":
        """The function from a key to the model of a run in a directory, without its data."""
        del directory
        raise TypeError(f"{type(self).__name__} does not define a model")

    def reopened(self, directory: Path) -> Self:
        """The same configuration for a run that is now in `directory`, to use what it trained."""
        return dataclasses.replace(self, run_dir=directory)

    def completed(self, default: "Config") -> Self:
        """The configuration with what the options imply; `default` is that without options."""
        del default
        return self

    def task(self, mesh: "jax.sharding.Mesh") -> "Task":
        """Builds the task (data, model, loss, evaluation) on a mesh; defined in every subclass."""
        raise TypeError(
            f"{type(self).__name__} does not define a task; use a subclass of Config that does"
        )
