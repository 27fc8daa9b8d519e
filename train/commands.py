"""The commands besides training: `python -m train evaluate|sample|predict|export RUN_DIR`."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from flax import nnx

from train import run_directory
from train.checkpoints import Which
from train.classes import predict_classes
from train.compare import Compare, compare
from train.detection.predict import predict as predict_images
from train.errors import BadInput, one_line, require, shown
from train.export import write_model
from train.files import writing
from train.mesh import check_batch_size, make_mesh
from train.options import PROGRAM, parse_options, path_of
from train.precision import products
from train.tasks.classification import Classification
from train.tasks.detection import Detection
from train.tasks.language_model import LanguageModel, Sample, sample_text, tokenizer_of
from train.trained import load_run, load_trained, model_layout

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
class ClassesOptions:
    """The folder that the classes go to, and the checkpoint that names them."""

    output: Path | None = None
    """Folder for what is found: the drawn images and detections.jsonl of a detector, classes.jsonl
    of a classifier (None: RUN_DIR/predict)."""

    checkpoint: Checkpoint = "best"


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ClassesOptions):
    """The detections to draw, the folder they go to, and the checkpoint that finds them."""

    confidence: float = 0.25
    """Detections with a lower score, in [0, 1], are left out."""

    head: Literal["one_to_one", "one_to_many"] = "one_to_one"
    """The one-to-one head, or the one-to-many head with non-maximum suppression."""

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
    layout = model_layout(task.init, task.sharding_rules, mesh, averaged=config.averaged)
    step, *model = load_trained(directory, layout, which=options.checkpoint, best=config.best)
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
    graph, _ = config.architecture()
    _, *model = load_run(config, directory, which=options.checkpoint)
    with products(config.precision):
        text = sample_text(
            nnx.merge(graph, *model), tokenizer_of(config), options, seed=options.seed
        )
    print(shown(text))


def predict(arguments: Sequence[str]) -> None:
    """Applies a run's detector or classifier to an image or to all images of a folder.

    A detector draws what it finds, a classifier names the likeliest classes.
    """
    directory, words = _run_directory("predict", arguments)
    given = bool(words) and not words[0].startswith("-")
    if not {"-h", "--help"} & set(words):
        require(given, f"name an image or a folder: {PROGRAM} predict {directory} PATH [options]")
    config = run_directory.read_config(directory)
    if not isinstance(config, Detection | Classification):
        raise BadInput(f"{directory} is a run of {type(config).__name__}, which takes no images")
    options = parse_options(
        PredictOptions() if isinstance(config, Detection) else ClassesOptions(),
        words[given:],
        program=f"{PROGRAM} predict {directory} PATH",
        description=one_line(predict.__doc__),
    )
    if options is None:
        return
    place, output = path_of(words[0]), options.output or directory / "predict"
    with products(config.precision), writing(output):
        if isinstance(config, Classification):
            _classify(config, directory, place, output, options)
        elif isinstance(options, PredictOptions):
            _detect(config, directory, place, output, options)


def _classify(
    config: Classification, directory: Path, place: Path, output: Path, options: ClassesOptions
) -> None:
    """Names the classes of images."""
    images = config.images(directory)
    graph, _ = config.architecture()
    _, *model = load_run(config, directory, which=options.checkpoint)
    classify = config.classifier(nnx.merge(graph, *model), images)
    predict_classes(classify, place, output, names=images.names, shape=images.shape)


def _detect(
    config: Detection, directory: Path, place: Path, output: Path, options: PredictOptions
) -> None:
    """Draws what a detector finds in images."""
    names = config.names(directory)
    graph, _ = config.model.functions(len(names))
    _, *model = load_run(config, directory, which=options.checkpoint)
    predict_images(
        config.finder(nnx.merge(graph, *model), options.head),
        place,
        output,
        names=names,
        side=config.data.size,
        confidence=options.confidence,
    )


def export(arguments: Sequence[str]) -> None:
    """Writes a run's model as a folder of safetensors, for --pretrained and other programs.

    A Qwen3 or GPT-2 becomes a Hugging Face folder for transformers. Any other model becomes a
    folder that evaluate, predict and sample take in place of the run.
    """
    directory, words = _run_directory("export", arguments)
    given = bool(words) and not words[0].startswith("-")
    if not {"-h", "--help"} & set(words):
        require(given, f"name a folder to create: {PROGRAM} export {directory} FOLDER [options]")
    config = run_directory.read_config(directory)
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
    step, *model = load_run(config, directory, which=options.checkpoint)
    remark = write_model(config, directory, (model[0], model[1]), folder, options.dtype, step)
    print(f"wrote step {step} to {folder}")
    if remark:
        print(remark)


# `train.cli` calls these by name, with the words after it.
COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "evaluate": evaluate,
    "sample": sample,
    "predict": predict,
    "export": export,
    "compare": compare,
}


#: The options of every command, with their defaults without a run.
OPTIONS = {
    "evaluate": EvaluateOptions(),
    "sample": SampleOptions(),
    "predict": PredictOptions(),
    "export": ExportOptions(),
    "compare": Compare(),
}


def _run_directory(command: str, arguments: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The run directory, which is the first argument, and the arguments after it."""
    given = bool(arguments) and not arguments[0].startswith("-")
    require(given, f"name a run directory first: {PROGRAM} {command} RUN_DIR [options]")
    return path_of(arguments[0]), arguments[1:]
