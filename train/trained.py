"""The model of a run, read from a checkpoint without the optimizer, or from an exported folder."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import Mesh, NamedSharding

from models.weights import Weight, read
from models.weights.table import INDEX, SINGLE, flat
from train import run_directory
from train.average import first_average, like
from train.checkpoint_folder import Best
from train.checkpoints import Which, load_model
from train.config import Config
from train.errors import BadInput
from train.integrity import read_json
from train.mesh import Rules, make_mesh, tree_shardings
from train.task import Init, Tree


def model_layout(init: Init, rules: Rules, mesh: Mesh, *, averaged: bool = False) -> dict[str, Any]:
    """Shapes and shardings of the model in a checkpoint.

    Args:
        init: from a key to `params` and `model_state`.
        rules: shardings of the parameters.
        mesh: where the model runs.
        averaged: whether the run keeps averaged weights.
    """
    model = jax.eval_shape(init, jax.random.key(0))
    everywhere = NamedSharding(mesh, P())
    layouts = (
        tree_shardings(model[0], rules, mesh),
        jax.tree.map(lambda _: everywhere, model[1]),
    )
    return checkpoint_layout(model, layouts, averaged=averaged)


def checkpoint_layout(
    model: tuple[Tree, Tree], layouts: tuple[Tree, Tree], *, averaged: bool
) -> dict[str, Any]:
    """The model in a checkpoint, from its shapes and shardings."""

    def laid_out(tree: Tree) -> Tree:
        return jax.tree.map(
            lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree, layouts
        )

    params, model_state = laid_out(model)
    average = laid_out(jax.eval_shape(first_average, model)) if averaged else None
    return {"params": params, "model_state": model_state, "average": average}


def on_one_device(init: Init, *, averaged: bool = False) -> dict[str, Any]:
    """The layout of a model on the first device of this process."""
    mesh = make_mesh("data=1", devices=jax.local_devices()[:1])
    return model_layout(init, [(".*", P())], mesh, averaged=averaged)


def load_run(config: Config, directory: Path, *, which: Which) -> tuple[int, Tree, Tree]:
    """`load_trained` on one device, for the run of a configuration."""
    layout = on_one_device(config.init(directory), averaged=config.averaged)
    return load_trained(directory, layout, which=which, best=config.best)


def load_trained(
    directory: Path, layout: dict[str, Any], *, which: Which, best: Best
) -> tuple[int, Tree, Tree]:
    """A checkpoint's step, and the `params` and `model_state` to evaluate it with.

    Args:
        directory: of the run, or a folder that was exported from one.
        layout: of the model.
        which: the checkpoint.
        best: the metric that chooses the best one.

    Raises:
        BadInput: there is no intact checkpoint of such a model.
    """
    if (directory / SINGLE).exists() or (directory / INDEX).exists():
        return _exported(directory, layout)
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


def weight_names(model: Tree) -> list[Weight]:
    """The arrays of `params` and `model_state` in an exported folder, each named by its path."""
    paths = [path for path, _ in flat(model)]
    return [Weight(path.partition("/")[2].replace("/", "."), path) for path in paths]


def _exported(folder: Path, layout: dict[str, Any]) -> tuple[int, Tree, Tree]:
    """The step and the model of an exported folder."""
    wanted = {name: layout[name] for name in ("params", "model_state")}
    shardings = jax.tree.map(lambda x: x.sharding, wanted)
    try:
        step = int(read_json(run_directory.files(folder).config, dict)["step"])
        table = weight_names(wanted)
        found = read(folder, table, wanted, dtype=jnp.float32, shardings=lambda _: shardings)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise BadInput(f"{folder} cannot be used: {error}") from error
    return step, found["params"], found["model_state"]
