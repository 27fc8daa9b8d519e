"""The model of a run, read from a checkpoint without the optimizer."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PRNGKeyArray

from train import run_directory
from train.average import first_average, like
from train.checkpoint_folder import Best
from train.checkpoints import Which, load_model
from train.mesh import Rules, make_mesh, tree_shardings
from train.task import Tree

Init = Callable[[PRNGKeyArray], tuple[Tree, Tree]]


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


def load_trained(
    directory: Path, layout: dict[str, Any], *, which: Which, best: Best
) -> tuple[int, Tree, Tree]:
    """A checkpoint's step, and the `params` and `model_state` to evaluate it with.

    Args:
        directory: of the run.
        layout: of the model.
        which: the checkpoint.
        best: the metric that chooses the best one.

    Raises:
        BadInput: there is no intact checkpoint of such a model.
    """
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
