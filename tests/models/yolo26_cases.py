"""Small detectors with known arrays, shared by the tests: random ones and the golden model A."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import yolo26
from models.yolo26.params import flat_arrays, with_arrays

# C3k from the first stage on; the golden model has plain bottlenecks in two stages.
TINY = yolo26.YOLO26Config(num_classes=3, depth=0.5, width=0.03125, max_channels=512, nested=True)
GOLDEN = yolo26.YOLO26Config(
    num_classes=3, depth=0.5, width=0.09375, max_channels=1024, nested=False
)


@functools.cache
def abstract(config, **fields):
    """The model with shapes instead of arrays."""
    return nnx.eval_shape(lambda: yolo26.YOLO26(config, rngs=nnx.Rngs(0), **fields))


@functools.cache
def random_model(config):
    """A model whose maps are of order 1 in all layers, running statistics included."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if x.ndim == 4:
            return rng.normal(size=x.shape) * np.sqrt(1 / np.prod(x.shape[:3]))
        if path.endswith(("var", "scale")):
            return rng.uniform(0.5, 1.5, x.shape)
        return rng.normal(size=x.shape) / 4

    shapes = flat_arrays(abstract(config))
    arrays = {path: jnp.asarray(draw(path, x), jnp.float32) for path, x in shapes.items()}
    return with_arrays(abstract(config), arrays)


def golden_model(shared):
    """The archive of reference numbers, and the model that they belong to."""
    archive = np.load(shared / "golden" / "yolo26_a.npz")
    prefix = "A/w/"
    weights = {k.removeprefix(prefix): archive[k] for k in archive.files if k.startswith(prefix)}
    return archive, yolo26.from_torch(abstract(GOLDEN), weights)


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def forward(graph, params, model_state, images, training):
    """Maps of all layers, outputs, and the statistics afterwards."""
    model = nnx.merge(graph, params, model_state)
    maps = model.feature_maps(images, training=training)
    outputs = model.from_maps(maps, training=training)
    return maps, outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def run(model, images, *, training=False):
    """Maps, outputs, and the statistics afterwards, of a model."""
    graph, params, model_state = nnx.split(model, nnx.Param, ...)
    parts = nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)
    return forward(graph, *parts, jnp.asarray(images), training)


def with_statistics(model, statistics):
    """The model with other running statistics."""
    graph, params, _ = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, params, statistics)


def named(outputs):
    """Raw outputs [B, F, N] by the prefix of the tower in the reference."""
    many, one = outputs
    arrays = (many.distances, many.logits, one.distances, one.logits)
    names = ("cv2", "cv3", "one2one_cv2", "one2one_cv3")
    return {name: x.transpose(0, 2, 1) for name, x in zip(names, arrays, strict=True)}


def rows(found):
    """Detections [B, K, 6]: corners, score, class."""
    columns = [x[..., None] for x in (found.scores, found.classes)]
    return np.concatenate([found.boxes, *columns], -1)


def relative_error(actual, expected):
    """Largest error over largest magnitude."""
    expected = np.asarray(expected, np.float64)
    return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
