"""The detector against numbers of the reference for a small model; skipped if not available."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import yolo26
from models.yolo26.assignment import Targets
from models.yolo26.blocks import AttentionBlock, ConvNorm
from models.yolo26.boxes import centre_and_size, corners
from models.yolo26.loss import detection_loss
from models.yolo26.params import flat_arrays, torch_name, with_arrays
from tests.models.yolo26_cases import (
    golden_model,
    named,
    relative_error,
    rows,
    run,
    with_statistics,
)

SIZE = (64, 96)
TOWERS = {"o2m_boxes": "cv2", "o2m_scores": "cv3"} | {
    "o2o_boxes": "one2one_cv2",
    "o2o_scores": "one2one_cv3",
}


@pytest.fixture(scope="module")
def golden(shared):
    """The archive and the model."""
    return golden_model(shared)


@pytest.fixture(scope="module")
def images(golden):
    return np.float32(golden[0]["A/image_uint8"].transpose(0, 2, 3, 1) / np.float32(255))


@pytest.fixture(scope="module")
def evaluated(golden, images):
    maps, outputs, _ = run(golden[1], images)
    return maps, outputs


@pytest.mark.slow
def test_every_layer_is_that_of_the_reference(golden, evaluated):
    archive, model = golden
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == 403_668
    maps, outputs = evaluated
    for i, x in enumerate(maps):
        expected = archive[f"A/eval/layer{i:02d}_image0"]
        assert relative_error(x[0].transpose(2, 0, 1), expected) < 1e-5
    for name, tower in TOWERS.items():
        assert relative_error(named(outputs)[tower], archive[f"A/eval/{name}"]) < 1e-5


@pytest.mark.slow
def test_decoded_boxes_are_those_of_the_reference(golden, evaluated):
    archive, (_, outputs) = golden[0], evaluated
    many = archive["A/eval/o2m_decoded_xywh_prob"].transpose(0, 2, 1)
    one = archive["A/eval/o2o_decoded_xyxy_prob"].transpose(0, 2, 1)
    boxes, scores = yolo26.predictions(outputs.one_to_many, SIZE)
    assert relative_error(centre_and_size(boxes), many[..., :4]) < 1e-5
    assert relative_error(scores, many[..., 4:]) < 1e-5
    boxes, scores = yolo26.predictions(outputs.one_to_one, SIZE)
    assert relative_error(boxes, one[..., :4]) < 1e-5
    assert relative_error(scores, one[..., 4:]) < 1e-5


@pytest.mark.slow
def test_top_detections_are_those_of_the_reference(golden, evaluated):
    archive, outputs = golden[0], evaluated[1]
    found = yolo26.end_to_end(outputs.one_to_one, SIZE, max_detections=20)
    assert relative_error(rows(found), archive["A/eval/o2o_topk_max20"]) < 1e-5
    found = rows(yolo26.end_to_end(outputs.one_to_one, SIZE))
    for ours, theirs in zip(found, archive["A/eval/o2o_topk_max300"], strict=True):
        assert_same_rows(ours, theirs)


# The stored rows fit overlaps of 0.68 and 0.35: the pairs of boxes nearest to these thresholds, on
# both sides, are 0.6794 and 0.6827, and 0.3495 and 0.3563.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("o2m_nms", {"overlap": 0.68}),
        ("o2m_nms_strict", {"overlap": 0.35, "confidence": 0.12, "max_detections": 50}),
    ],
)
def test_suppression_leaves_the_rows_of_the_reference(golden, evaluated, name, options):
    archive, outputs = golden[0], evaluated[1]
    found = rows(yolo26.non_maximum_suppression(outputs.one_to_many, SIZE, **options))
    counts, expected = archive[f"A/eval/{name}_counts"], archive[f"A/eval/{name}_rows"]
    ends = np.cumsum(counts)
    for ours, count, end in zip(found, counts, ends, strict=True):
        assert (ours[:, 4] > 0).sum() == count
        assert_same_rows(ours[:count], expected[end - count : end])


def assert_same_rows(ours, theirs):
    """The same detections in any order."""
    distance = np.abs(ours[:, None] - theirs[None]).max(-1)
    nearest = distance.argmin(1)
    assert sorted(nearest) == list(range(len(theirs)))
    assert distance.min(1).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
def test_a_folded_model_gives_the_same_outputs(golden, images, evaluated):
    for head, outputs in zip(("one_to_many", "one_to_one"), evaluated[1], strict=True):
        folded = yolo26.fold(golden[1], head=head)
        assert sum(x.size for x in jax.tree.leaves(nnx.state(folded))) == 360_048
        graph, state = nnx.split(folded)
        found = jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state)(x))(state, images)
        for ours, theirs in zip(getattr(found, head), outputs, strict=True):
            assert relative_error(ours, theirs) < 1e-5


@pytest.mark.slow
def test_a_training_pass_is_that_of_the_reference(golden, images):
    archive, model = golden
    _, outputs, after = run(model, images, training=True)
    for name, tower in TOWERS.items():
        assert relative_error(named(outputs)[tower], archive[f"A/train/{name}"]) < 4e-5
    moved = yolo26.to_torch(with_statistics(model, after))
    names = [k for k in archive.files if k.startswith("A/train/stats_after/")]
    assert len(names) == len(jax.tree.leaves(after))
    for name in names:
        assert relative_error(moved[name.rpartition("/")[2]], archive[name]) < 1e-5


@pytest.fixture(scope="module")
def gradients(golden, images):
    """`(a, b) -> gradients by PyTorch name` of a times the loss of one head and b times the other.

    Not times the number of images, which the stored norms of single heads are not either.
    """
    archive, model = golden
    graph, params, model_state = nnx.split(model, nnx.Param, ...)
    targets = golden_targets(archive)

    def loss(params, weights):
        outputs = nnx.merge(graph, params, model_state, copy=True)(images, training=True)
        many, one = (detection_loss(*outputs, targets, size=SIZE, weight=w)[0] for w in (1.0, 0.0))
        return weights[0] * many + weights[1] * one

    gradient = jax.jit(jax.grad(loss))

    def by_name(*weights):
        found = gradient(params, jnp.asarray(weights))
        return yolo26.to_torch(nnx.merge(graph, found, model_state))

    return by_name


def golden_targets(archive):
    """The padded objects of the batch."""
    image = archive["A/batch/batch_idx"].astype(int)
    boxes, labels, valid = np.zeros((3, 8, 4)), np.zeros((3, 8), np.int32), np.zeros((3, 8), bool)
    for i in range(3):
        count = (image == i).sum()
        boxes[i, :count] = archive["A/batch/bboxes"][image == i] * [96, 64, 96, 64]
        labels[i, :count] = archive["A/batch/cls"][image == i, 0]
        valid[i, :count] = True
    return Targets(
        corners(jnp.asarray(boxes, jnp.float32)), jnp.asarray(labels), jnp.asarray(valid)
    )


@pytest.mark.slow
def test_gradients_are_those_of_the_reference(golden, gradients):
    archive = golden[0]
    found = gradients(0.8, 0.2)
    names = archive["A/train/grad_names"].tolist()
    norms = np.array([np.linalg.norm(found[name]) for name in names])
    assert relative_error(norms, archive["A/train/grad_norms"]) < 2e-3
    np.testing.assert_allclose(norms, archive["A/train/grad_norms"], rtol=2e-3, atol=1e-6)
    total = np.linalg.norm(norms)
    np.testing.assert_allclose(total, archive["A/train/grad_global_norm"], rtol=1e-4)
    for key in (k for k in archive.files if k.startswith("A/train/grad/")):
        assert relative_error(found[key.removeprefix("A/train/grad/")], archive[key]) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "head"), [((1.0, 0.0), "o2m"), ((0.0, 1.0), "o2o")])
def test_each_heads_gradients_are_those_of_the_reference(golden, gradients, weights, head):
    archive = golden[0]
    found = gradients(*weights)
    norms = np.array([np.linalg.norm(found[name]) for name in archive["A/train/grad_names"]])
    expected = archive[f"A/train/grad_norms_{head}_only_unweighted"]
    assert relative_error(norms, expected) < 2e-3
    np.testing.assert_array_equal(norms > 0, expected > 0)  # 66 arrays for the one-to-one head


def test_an_attention_block_of_two_heads_is_that_of_the_reference(golden):
    archive = golden[0]
    conv = functools.partial(
        ConvNorm,
        kernel_init=nnx.initializers.zeros,
        rngs=nnx.Rngs(0),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    block = AttentionBlock(32, 2, conv)
    arrays = {path: archive[f"psa/w/{torch_name(path)}"] for path in flat_arrays(block)}
    arrays = {
        path: jnp.asarray(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x, jnp.float32)
        for path, x in arrays.items()
    }
    block = with_arrays(block, arrays)
    x = jnp.asarray(archive["psa/x"].transpose(0, 2, 3, 1))
    attended = block.attention(x, False).transpose(0, 3, 1, 2)
    assert relative_error(attended, archive["psa/attn_out"]) < 1e-5
    assert relative_error(block(x, False).transpose(0, 3, 1, 2), archive["psa/out"]) < 1e-5
