"""Detections from raw outputs: against plain NumPy, and properties for any outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import yolo26
from tests.models.yolo26_cases import rows

SIZE, CELLS, CLASSES = (32, 64), 42, 3


@pytest.fixture(scope="module")
def raw():
    """Boxes with large overlaps, and scores of all sizes."""
    rng = np.random.default_rng(0)
    distances = rng.uniform(0.5, 3, (2, CELLS, 4))
    return yolo26.Raw(
        jnp.asarray(distances, jnp.float32),
        jnp.asarray(rng.normal(-2, 2, (2, CELLS, CLASSES)), jnp.float32),
    )


@pytest.fixture(scope="module")
def scored(raw):
    """Boxes [2, N, 4] and scores [2, N, C] by NumPy."""
    cells = [(s, x, y) for s in (8, 16, 32) for y in range(32 // s) for x in range(64 // s)]
    s, x, y = np.array(cells, float).T
    left, top, right, bottom = np.float64(raw.distances).transpose(2, 0, 1)
    sides = (x + 0.5 - left) * s, (y + 0.5 - top) * s, (x + 0.5 + right) * s, (y + 0.5 + bottom) * s
    return np.stack(sides, -1), 1 / (1 + np.exp(-np.float64(raw.logits)))


def test_predictions_are_boxes_in_pixels_and_probabilities(raw, scored):
    for ours, theirs in zip(yolo26.predictions(raw, SIZE), scored, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "confidence"), [(300, 0.0), (5, 0.0), (20, 0.6)])
def test_end_to_end_keeps_the_best_scores_of_the_best_cells(raw, scored, count, confidence):
    found = rows(yolo26.end_to_end(raw, SIZE, max_detections=count, confidence=confidence))
    kept = min(count, CELLS)
    assert found.shape == (2, kept, 6)
    for ours, boxes, scores in zip(found, *scored, strict=True):
        cells = np.argsort(-scores.max(1))[:kept]
        pairs = sorted(((scores[i, c], i, c) for i in cells for c in range(CLASSES)), reverse=True)
        expected = [[*boxes[i], s * (s > confidence), c] for s, i, c in pairs[:kept]]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def greedy(boxes, scores, *, overlap, confidence):
    """Non-maximum suppression of one image, one class after the other."""
    kept = []
    for c in range(CLASSES):
        left = [i for i in np.argsort(-scores[:, c]) if scores[i, c] > confidence]
        while left:
            best = left.pop(0)
            kept.append([*boxes[best], scores[best, c], c])
            left = [i for i in left if iou(boxes[best], boxes[i]) <= overlap]
    return np.array(sorted(kept, key=lambda row: -row[4]))


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@pytest.mark.parametrize(("overlap", "confidence"), [(0.7, 0.001), (0.3, 0.2)])
def test_suppression_is_greedy_a_class_at_a_time(raw, scored, overlap, confidence):
    run = functools.partial(yolo26.non_maximum_suppression, overlap=overlap, confidence=confidence)
    found = rows(jax.jit(run, static_argnums=1)(raw, SIZE))
    for ours, boxes, scores in zip(found, *scored, strict=True):
        expected = greedy(boxes, scores, overlap=overlap, confidence=confidence)
        assert (ours[:, 4] > 0).sum() == len(expected) > 10
        np.testing.assert_allclose(ours[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    short = rows(run(raw, SIZE, max_detections=7))
    np.testing.assert_allclose(short, found[:, :7], rtol=1e-5, atol=1e-5)


def test_suppression_with_one_class_a_cell_and_few_candidates(raw, scored):
    run = functools.partial(yolo26.non_maximum_suppression, raw, SIZE, max_detections=CELLS)
    found = rows(run(several_classes=False, overlap=1.0))
    best = np.sort(scored[1].max(2))[:, ::-1]
    np.testing.assert_allclose(found[..., 4], best * (best > 0.001), rtol=1e-4)
    few = rows(run(overlap=1.0, candidates=3))
    np.testing.assert_array_equal((few[..., 4] > 0).sum(1), 3)


def test_an_image_of_another_size_is_refused(raw):
    with pytest.raises(ValueError, match=r"size=\(64, 64\) has 84 cells and the outputs have 42"):
        yolo26.end_to_end(raw, (64, 64))
