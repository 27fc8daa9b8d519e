"""A run that starts from the weights of another run, or of an exported folder."""

import re
import sys
from pathlib import Path
from typing import Any

import jax
from jax import P
from jax.sharding import NamedSharding
from jaxtyping import PRNGKeyArray

from models.weights.table import flat, path_name
from train import distributed, run_directory
from train.config import Config
from train.errors import require
from train.integrity import read_json
from train.task import Init, Tree
from train.trained import checkpoint_layout, load_trained

_NAMED = 3  # differences named in a message


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, or was exported from one, unlike a Hugging Face one."""
    try:
        return "config" in read_json(run_directory.files(folder).config, dict)
    except (OSError, ValueError):
        return False


def weights_of_run(
    config: Config, init: Init, like: tuple[Tree, Tree], key: PRNGKeyArray
) -> tuple[Tree, Tree]:
    """The best `params` and `model_state` of the run in `config.pretrained`.

    Where the numbers of classes differ, the arrays of `config.class_head` stay random.

    Args:
        config: of the new run.
        init: of the new model.
        like: shapes and shardings of the new `params` and `model_state`.
        key: for what stays random.

    Raises:
        BadInput: the run is of another kind of task, or of a model with other arrays; the message
            names the first that differ.
    """
    assert config.pretrained is not None
    folder = config.pretrained
    source = run_directory.read_config(folder)
    require(
        type(source) is type(config),
        f"pretrained={folder} is a run of {type(source).__name__}, and this is a run of "
        f"{type(config).__name__}; use the folder of another run",
    )
    model = jax.eval_shape(source.init(folder), key)
    theirs, ours = dict(flat(model)), dict(flat(like))
    head = re.compile(config.class_head or "(?!)")
    differs = [path for path in theirs | ours if _shape(theirs, path) != _shape(ours, path)]
    wrong = [path for path in differs if not head.search(path)]
    texts = [
        f"{path.partition('/')[2]} is {_shape(theirs, path)} there and {_shape(ours, path)} here"
        for path in wrong[:_NAMED]
    ]
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    require(
        not wrong,
        f"pretrained={folder} does not fit the model: {'; '.join(texts)}{more}. Use the --model "
        "options of that run",
    )
    found = _loaded(source, folder, model, ours)
    if not differs:
        return found
    if distributed.leads():
        line = f"{folder} has another number of classes: here their head starts at random"
        print(line, file=sys.stderr)
    new = {path: leaf.sharding for path, leaf in ours.items() if head.search(path)}

    def drawn(key: PRNGKeyArray) -> dict[str, jax.Array]:
        return {path: x for path, x in flat(init(key)) if path in new}

    # Compiled, so that the rest of `init` is not computed.
    random = jax.jit(drawn, out_shardings=new)
    arrays = dict(flat(found)) | random(key)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_name(path)], like)


def _shape(leaves: dict, path: str) -> str:
    """The shape of an array, for messages."""
    return str(list(leaves[path].shape)) if path in leaves else "missing"


def _loaded(source: Config, folder: Path, model: tuple[Tree, Tree], ours: dict) -> tuple:
    """The weights of the other run, sharded like those here of the same names."""
    everywhere = NamedSharding(next(iter(ours.values())).sharding.mesh, P())

    def sharding(path: tuple, _: Any) -> NamedSharding:
        name = path_name(path)
        return ours[name].sharding if name in ours else everywhere

    layouts = jax.tree_util.tree_map_with_path(sharding, model)
    layout = checkpoint_layout(model, layouts, averaged=source.averaged)
    _, *found = load_trained(folder, layout, which="best", best=source.best)
    return tuple(found)
