"""The commands besides training: `python -m train evaluate|sample|predict|export RUN_DIR`."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import tyro
from flax import nnx
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PRNGKeyArray
from safetensors import SafetensorError

from models.qwen3 import Qwen3, Qwen3Config, save
from train import run_directory
from train.average import first_average, like
from train.checkpoint_folder import Best
from train.checkpoints import Which, load_model
from train.compare import compare
from train.data.subwords import Subwords
from train.data.tokenizer_files import tokenizer_files
from train.data.tokenizers import Bytes, Tokenizer, load_tokenizer
from train.detection.predict import predict as predict_images
from train.errors import BadInput, MachineError, one_line, require, shown
from train.files import writing
from train.mesh import Rules, check_batch_size, make_mesh, tree_shardings
from train.options import PROGRAM, parse_options, path_of
from train.precision import products
from train.task import Tree
from train.tasks.detection import Detection
from train.tasks.language_model import LanguageModel, Sample, sample_text

Checkpoint = Annotated[
    Which, tyro.conf.arg(help="The checkpoint with the best evaluation, or the newest one.")
]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Which checkpoint is evaluated, and on which devices; the run adds its data options."""

    checkpoint: Checkpoint = "best"

    batch_size: int = 16
    """Examples per batch, over all devices."""

    mesh: str = "data=-1"
    """Device mesh, as in training."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Sample):
    """The text to write, and the checkpoint that writes it."""

    seed: int = 0
    """Each seed gives another text, unless temperature is 0."""

    checkpoint: Checkpoint = "best"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The detections to draw, the folder they go to, and the checkpoint that finds them."""

    output: Path | None = None
    """Folder for the drawn images and detections.jsonl (None: RUN_DIR/predict)."""

    confidence: float = 0.25
    """Detections with a lower score are left out; 0 .. 1."""

    head: Literal["one_to_one", "one_to_many"] = "one_to_one"
    """The one-to-one head, or the one-to-many head with non-maximum suppression."""

    checkpoint: Checkpoint = "best"

    def __post_init__(self) -> None:
        require(0 <= self.confidence <= 1, f"confidence={self.confidence} must be in 0 .. 1")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The type of the weights, and the checkpoint they come from."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the written weights."""

    checkpoint: Checkpoint = "best"


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluates a run's model: perplexity and bits per byte for a language model.

    The run's options for data and devices apply: `--data.validation FILE` evaluates on another
    text, `--mesh data=1` on one device.
    """
    directory, words = _run_directory("evaluate", arguments)
    config = run_directory.read_config(directory)
    own = [f.name for f in dataclasses.fields(config) if f.name in ("data", "batch_size", "mesh")]
    values = {name: getattr(config, name) for name in own}
    kinds = [(name, type(value)) for name, value in values.items()]
    offered = dataclasses.make_dataclass(
        "OfTheRun", kinds, bases=(EvaluateOptions,), frozen=True, kw_only=True
    )
    options = parse_options(
        offered(**values),
        words,
        program=f"{PROGRAM} evaluate {directory}",
        description=one_line(evaluate.__doc__),
    )
    if options is None:
        return
    config = dataclasses.replace(config, **{name: getattr(options, name) for name in own})
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh)
    task = config.task(mesh)
    averaged = task.average is not None or config.optimizer.lookahead > 0
    step, *model = _load(
        directory,
        _layout(task.init, task.sharding_rules, mesh, averaged=averaged),
        which=options.checkpoint,
        best=task.best,
    )
    print(f"{directory}, {options.checkpoint} checkpoint, step {step} of {config.steps}:")
    with products(config.precision):
        metrics = task.evaluate(*model)
    for name, value in metrics.items():
        unit = f" {task.loss_unit}" if name == "loss" else ""
        print(f"  {name:16} {value:.6g}{unit}")


def sample(arguments: Sequence[str]) -> None:
    """Samples text from a run's language model; the training data is not needed."""
    directory, words = _run_directory("sample", arguments)
    config = run_directory.read_config(directory)
    if not isinstance(config, LanguageModel):
        raise BadInput(
            f"{directory} is a run of {type(config).__name__}, which does not write text"
        )
    options = parse_options(
        SampleOptions(**dataclasses.asdict(config.sample), seed=config.seed),
        words,
        program=f"{PROGRAM} sample {directory}",
        description=one_line(sample.__doc__),
    )
    if options is None:
        return
    graph, init = config.architecture()
    one = make_mesh("data=1", devices=jax.local_devices()[:1])
    layout = _layout(init, [(".*", P())], one, averaged=config.optimizer.lookahead > 0)
    _, *model = _load(directory, layout, which=options.checkpoint, best=("loss", "min"))
    with products(config.precision):
        text = sample_text(nnx.merge(graph, *model), _tokenizer(config), options, seed=options.seed)
    print(shown(text))


def predict(arguments: Sequence[str]) -> None:
    """Draws what a run's detector finds in an image or in all images of a folder."""
    directory, words = _run_directory("predict", arguments)
    given = bool(words) and not words[0].startswith("-")
    if not {"-h", "--help"} & set(words):
        require(given, f"name an image or a folder: {PROGRAM} predict {directory} PATH [options]")
    config = run_directory.read_config(directory)
    if not isinstance(config, Detection):
        raise BadInput(
            f"{directory} is a run of {type(config).__name__}, which does not detect objects"
        )
    options = parse_options(
        PredictOptions(),
        words[given:],
        program=f"{PROGRAM} predict {directory} PATH",
        description=one_line(predict.__doc__),
    )
    if options is None:
        return
    names = config.names(directory)
    graph, init = config.model.functions(len(names))
    layout = _layout(
        init, [(".*", P())], make_mesh("data=1", devices=jax.local_devices()[:1]), averaged=True
    )
    _, *model = _load(directory, layout, which=options.checkpoint, best=("fitness", "max"))
    output = options.output or directory / "predict"
    with products(config.precision), writing(output):
        predict_images(
            config.finder(nnx.merge(graph, *model), options.head),
            path_of(words[0]),
            output,
            names=names,
            side=config.data.size,
            confidence=options.confidence,
        )


def export(arguments: Sequence[str]) -> None:
    """Writes a run's Qwen3 as a Hugging Face folder for transformers or --pretrained."""
    directory, words = _run_directory("export", arguments)
    given = bool(words) and not words[0].startswith("-")
    if not {"-h", "--help"} & set(words):
        require(given, f"name a folder to create: {PROGRAM} export {directory} FOLDER [options]")
    config = run_directory.read_config(directory)
    if not isinstance(config, LanguageModel) or not isinstance(config.model, Qwen3Config):
        raise BadInput(f"{directory} is not a run of a Qwen3, and nothing else can be exported")
    options = parse_options(
        ExportOptions(),
        words[given:],
        program=f"{PROGRAM} export {directory} FOLDER",
        description=one_line(export.__doc__),
    )
    if options is None:
        return
    folder = path_of(words[0])
    require(not folder.exists(), f"{folder} exists; name a folder that does not, or remove it")
    graph, init = config.architecture()
    one = make_mesh("data=1", devices=jax.local_devices()[:1])
    layout = _layout(init, [(".*", P())], one, averaged=config.optimizer.lookahead > 0)
    step, *model = _load(directory, layout, which=options.checkpoint, best=("loss", "min"))
    tokenizer = _tokenizer(config)
    files = tokenizer_files(tokenizer) if isinstance(tokenizer, Subwords) else {}
    try:
        with writing(folder):
            save(
                cast(Qwen3, nnx.merge(graph, *model)),
                folder,
                dtype=options.dtype,
                end_of_text=tokenizer.end_of_text,
                files=files,
            )
    except SafetensorError as error:  # a full disk
        raise MachineError(f"cannot write {folder}: {error}") from error
    print(f"wrote step {step} to {folder}")
    if not files:
        print("no tokenizer files: tokens are bytes, so encode a text with list(text.encode())")


# `train.cli` calls these by name, with the words after it.
COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "evaluate": evaluate,
    "sample": sample,
    "predict": predict,
    "export": export,
    "compare": compare,
}


def _run_directory(command: str, arguments: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The run directory, which is the first argument, and the arguments after it."""
    given = bool(arguments) and not arguments[0].startswith("-")
    require(given, f"name a run directory first: {PROGRAM} {command} RUN_DIR [options]")
    return path_of(arguments[0]), arguments[1:]


def _tokenizer(config: LanguageModel) -> Tokenizer:
    """The tokenizer that a run was trained with."""
    path = config.data.tokenizer
    return Bytes() if path == "bytes" else load_tokenizer(Path(path))


def _layout(
    init: Callable[[PRNGKeyArray], tuple[Tree, Tree]],
    rules: Rules,
    mesh: Mesh,
    *,
    averaged: bool = False,
) -> dict[str, Any]:
    """Shapes and shardings of the model in a checkpoint."""
    model = jax.eval_shape(init, jax.random.key(0))
    everywhere = NamedSharding(mesh, P())
    layouts = (
        tree_shardings(model[0], rules, mesh),
        jax.tree.map(lambda _: everywhere, model[1]),
    )

    def laid_out(tree: Tree) -> Tree:
        return jax.tree.map(
            lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree, layouts
        )

    params, model_state = laid_out(model)
    average = laid_out(jax.eval_shape(first_average, model)) if averaged else None
    return {"params": params, "model_state": model_state, "average": average}


def _load(
    directory: Path, layout: dict[str, Any], *, which: Which, best: Best
) -> tuple[int, Tree, Tree]:
    """A checkpoint's step, and the `params` and `model_state` to evaluate it with."""
    step, model = load_model(
        run_directory.files(directory).checkpoints,
        layout,
        which=which,
        best=best,
        warn=lambda text: print(f"warning: {text}", file=sys.stderr),
    )
    newest = model["params"], model["model_state"]
    params, model_state = newest if model["average"] is None else like(model["average"], newest)
    return step, params, model_state
