"""The configuration of a run, its JSON form, and the comparison of two configurations."""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tyro

from train.distributed import Processes
from train.errors import BadInput, require
from train.optimizers import MiMuon, Optimizer
from train.precision import Precision

if TYPE_CHECKING:
    import jax

    from train.task import Init, Task

# Fields that may change between two calls on one run directory: they do not affect the results. Of
# data the checksum decides, wherever they are.
MAY_CHANGE = frozenset(
    {
        "run_dir",
        "mesh",
        "mesh_axes",
        "processes",
        "checkpoint_every",
        "keep_checkpoints",
        "profile",
        "log",
        "attention",
        "data.cache",
    }
)
MAY_MOVE = frozenset({"data.path", "data.validation", "data.tokenizer"})


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


def to_json(config: Any) -> Any:
    """Returns a configuration as JSON values: dataclasses become objects with their `type`.

    Paths become strings, tuples become lists, and inf and nan, which JSON lacks, become strings.

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


def from_json(kind: Any, value: Any, name: str = "config") -> Any:
    """The inverse of `to_json`. Nothing is guessed, and every field must be present.

    With cattrs, hooks for `type`, exact fields and the place in a message would be as long.

    Args:
        kind: the expected type; a dataclass also stands for its subclasses.
        value: JSON values.
        name: name of the value, for messages.

    Raises:
        BadInput: a field is missing, unknown or of another type; the message names it.

    Example:
        >>> from_json(Optimizer, to_json(MiMuon(threshold=math.inf))) == MiMuon(threshold=math.inf)
        True
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, value, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, value, name)
    if origin is Literal:
        choices = ", ".join(map(json.dumps, arguments))
        require(
            value in arguments, f"{name} is {json.dumps(value)} where one of {choices} is expected"
        )
        return value
    if origin is tuple and isinstance(value, list):
        many = len(arguments) == 2 and arguments[1] is ...
        kinds = arguments[:1] * len(value) if many else arguments
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(from_json(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(pairs))
    if kind is types.NoneType and value is None:
        return None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and (value in ("inf", "-inf", "nan") or type(value) in (int, float)):
        return float(str(value))
    if kind in (bool, int, str) and type(value) is kind:
        return value
    expected = getattr(kind, "__name__", kind) if origin is None else kind
    raise BadInput(f"{name} is {json.dumps(value)} where {expected} is expected")


def _dataclass_from_json(kind: Any, value: Any, name: str) -> Any:
    """One object of the named subclass, with exactly its fields."""
    known = {made.__name__: made for made in (kind, *_subclasses(kind))}
    found = value.get("type") if isinstance(value, dict) else value
    require(
        isinstance(value, dict) and found in known,
        f"{name} is {json.dumps(found)} where one of {', '.join(known)} is expected",
    )
    made = known[found]
    hints = typing.get_type_hints(made)
    fields = [field.name for field in dataclasses.fields(made)]
    missing = [field for field in fields if field not in value]
    require(not missing, f"{name} has no {', '.join(missing)}")
    unknown = [field for field in value if field not in {"type", *fields}]
    require(not unknown, f"{name} has {', '.join(unknown)}, which {found} does not have")
    return made(**{f: from_json(hints[f], value[f], f"{name}.{f}") for f in fields})


def _first_that_fits(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """A value of the first type that accepts it."""
    refusals = []
    for kind in kinds:
        try:
            return from_json(kind, value, name)
        except BadInput as error:
            refusals.append(error)
    raise refusals[0]  # None comes last in `int | None`


def _subclasses(kind: type) -> list[type]:
    """All classes below one, at any depth."""
    return [found for below in kind.__subclasses__() for found in (below, *_subclasses(below))]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lists where two configurations in JSON form differ, as `steps is 300 there and 400 here`.

    Fields in `MAY_CHANGE` are ignored.

    Example:
        >>> differences({"steps": 300, "mesh": "data=1"}, {"steps": 400, "mesh": "data=2"})
        ['steps is 300 there and 400 here']
    """
    found = changes(before, now)
    return [f"{name} is {old} there and {new} here" for name, (old, new) in found.items()]


def changes(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> dict[str, tuple[str, str]]:
    """Old and new value of every field that differs, as text; fields in `MAY_CHANGE` are ignored.

    A different type (another optimizer) stands for all fields below it.

    Example:
        >>> changes({"steps": 300, "data": {"path": "a"}}, {"steps": 300, "data": {"path": "b"}})
        {'data.path': ('"a"', '"b"')}
    """
    if before.get("type") != now.get("type"):
        return {prefix.rstrip(".") or "the task": (str(before.get("type")), str(now.get("type")))}
    found: dict[str, tuple[str, str]] = {}
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old == new or prefix + name in MAY_CHANGE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found |= changes(old, new, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(old), json.dumps(new)
    return found
