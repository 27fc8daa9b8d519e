"""What `python -m train export` writes: a Hugging Face folder, or one that replaces the run's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from safetensors import SafetensorError

from models.weights import write
from train.config import Config
from train.data.subwords import Subwords
from train.data.tokenizer_files import tokenizer_files
from train.errors import MachineError
from train.files import writing
from train.integrity import read_json
from train.run_directory import files
from train.task import Tree
from train.tasks import decoders
from train.tasks.language_model import LanguageModel, tokenizer_of
from train.trained import weight_names


def write_model(
    config: Config, directory: Path, model: tuple[Tree, Tree], folder: Path, dtype: str, step: int
) -> str:
    """Writes the model of a run as a new folder of safetensors.

    A decoder that transformers knows becomes a Hugging Face folder. Any other model becomes a
    folder that commands and `--pretrained` take in place of the run's: its config.json, the texts
    beside it (the classes of a detector), and each array by its path (`layers.0.conv.kernel`).

    Args:
        config: of the run.
        directory: of the run.
        model: `params` and `model_state`.
        folder: to be made.
        dtype: of the written arrays.
        step: of the checkpoint.

    Returns:
        A remark for the user, or an empty string.

    Raises:
        MachineError: the folder cannot be written.
    """
    try:
        with writing(folder):
            if isinstance(config, LanguageModel) and decoders.published(config.model) is not None:
                return _published(config, model, folder, dtype)
            tree = {"params": model[0], "model_state": model[1]}
            record = read_json(files(directory).config, dict) | {"step": step}
            texts = {n: (directory / n).read_text(encoding="utf-8") for n in record["files"]}
            write(folder, weight_names(tree), tree, config=record, files=texts, dtype=dtype)
    except SafetensorError as error:  # a full disk
        raise MachineError(f"cannot write {folder}: {error}") from error
    return f"evaluate, predict, sample and --pretrained take {folder} in place of a run"


def _published(config: LanguageModel, model: tuple[Tree, Tree], folder: Path, dtype: str) -> str:
    """Writes a Hugging Face folder."""
    graph, _ = config.architecture()
    tokenizer = tokenizer_of(config)
    texts: Mapping[str, str] = {}
    if isinstance(tokenizer, Subwords):
        texts = tokenizer_files(tokenizer)
    kind: Any = decoders.published(config.model)
    kind.save(
        nnx.merge(graph, *model),
        folder,
        dtype=dtype,
        end_of_text=tokenizer.end_of_text,
        files=texts,
    )
    if texts:
        return ""
    return "no tokenizer files: tokens are bytes, so encode a text with list(text.encode())"
