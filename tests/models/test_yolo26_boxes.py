"""Cells, forms of boxes and overlaps, against golden numbers and the laws that they obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.yolo26.boxes import anchors, centre_and_size, ciou, corners, decode, inside, iou

ROWS = 16  # boxes a draw, so that one compiled program serves all draws
values = jax.jit(ciou)
plain = jax.jit(iou)
gradients = jax.jit(jax.grad(lambda a, b: ciou(a, b).sum(), (0, 1)))

# Whole numbers and quarters below 1e4: sums and halves are exact, equal sides and touching boxes
# are common, and no square overflows.
coordinates = st.integers(-40_000, 40_000).map(lambda n: n / 4) | st.integers(-8, 8).map(float)
any_boxes = hnp.arrays(np.float32, (ROWS, 4), elements=coordinates)
upright = any_boxes.map(
    lambda b: np.concatenate([np.minimum(b[:, :2], b[:, 2:]), np.maximum(b[:, :2], b[:, 2:])], 1)
)

few = settings(max_examples=20)  # each of them 16 boxes


def test_complete_iou_and_its_gradient_equal_the_golden_ones(shared):
    golden = np.load(shared / "golden" / "yolo26_a.npz")
    a, b = golden["ciou/pred"], golden["ciou/target"]
    np.testing.assert_allclose(values(a, b), golden["ciou/value"], rtol=2e-6, atol=1e-6)
    got, expected = gradients(a, b)[0], golden["ciou/grad_pred"]
    # Each box by itself: they range over nine orders of magnitude, that of a point reaches 4e6.
    scale = np.maximum(np.abs(expected).max(1, keepdims=True), 1e-3)
    assert (np.abs(got - expected) / scale).max() < 1e-5
    matrix = iou(b[:8, None], a[None, :8])
    np.testing.assert_allclose(matrix, golden["ciou/plain_iou_matrix"], rtol=1e-6)


def test_cells_and_decoded_boxes_equal_the_golden_ones(shared):
    golden = np.load(shared / "golden" / "yolo26_a.npz")
    centres, strides = anchors(64, 96)
    np.testing.assert_array_equal(centres / strides[:, None], golden["A/anchors_grid"])
    np.testing.assert_array_equal(strides, golden["A/anchors_stride"][:, 0])
    for branch, name in (("o2o", "decoded_xyxy_prob"), ("o2m", "decoded_xywh_prob")):
        boxes = decode(golden[f"A/eval/{branch}_boxes"].transpose(0, 2, 1), centres, strides)
        boxes = boxes if branch == "o2o" else centre_and_size(boxes)
        expected = golden[f"A/eval/{branch}_{name}"][:, :4].transpose(0, 2, 1)
        np.testing.assert_allclose(boxes, expected, rtol=1e-6, atol=1e-5)


@few
@given(upright, upright)
def test_complete_iou_of_upright_boxes_is_symmetric_and_bounded(a, b):
    overlaps, completed = np.asarray(plain(a, b)), np.asarray(values(a, b))
    # Not bit for bit: one of the products of a sum may be fused into it, and only the first.
    np.testing.assert_allclose(overlaps, plain(b, a), atol=1e-6)
    np.testing.assert_allclose(completed, values(b, a), atol=1e-6)
    assert (overlaps >= 0).all()
    assert (overlaps <= 1 + 1e-6).all()
    assert (completed <= overlaps + 1e-6).all()
    assert (completed > -1.5 - 1e-6).all()


@few
@given(upright)
def test_a_box_overlaps_itself_by_one_up_to_epsilon(a):
    area = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    np.testing.assert_allclose(values(a, a), area / (area + 1e-7), atol=1e-6)
    np.testing.assert_allclose(plain(a, a), area / (area + 1e-7), atol=1e-6)


@few
@given(any_boxes, any_boxes)
def test_boxes_of_any_numbers_have_finite_overlaps_and_gradients(a, b):
    for array in (plain(a, b), values(a, b), *gradients(a, b)):
        assert np.isfinite(array).all()


def test_a_box_without_height_to_the_last_bit_has_a_finite_gradient():
    flat = jnp.array([[0.0, 1e-7, 0.0, 0.0], [0.0, 1e-7, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert (flat[0, 3] - flat[0, 1] + 1e-7) == 0
    flat = jnp.tile(flat, (ROWS, 1))[:ROWS]
    other = jnp.broadcast_to(jnp.array([0.0, 0.0, 2.0, 1.0]), flat.shape)
    for array in (values(flat, other), *gradients(flat, other), *gradients(flat, flat)):
        assert np.isfinite(array).all()


@few
@given(upright, upright, st.integers(-3, 3))
def test_overlaps_do_not_depend_on_scale_or_on_mirroring(a, b, power):
    big = (a[:, 2] - a[:, 0] >= 1) & (a[:, 3] - a[:, 1] >= 1)  # epsilon has no scale
    expected = np.asarray(values(a, b))[big]
    scaled = np.asarray(values(a * 2.0**power, b * 2.0**power))[big]
    np.testing.assert_allclose(scaled, expected, atol=1e-5)
    mirrored = [np.stack([-x[:, 2], x[:, 1], -x[:, 0], x[:, 3]], 1) for x in (a, b)]
    np.testing.assert_allclose(np.asarray(values(*mirrored))[big], expected, atol=1e-6)


def test_pairs_broadcast():
    a, b = np.random.default_rng(0).uniform(0, 9, (2, 4, 4)).astype(np.float32)
    pairs = values(np.repeat(a, 4, 0), np.tile(b, (4, 1)))
    np.testing.assert_allclose(values(a[:, None], b[None]).ravel(), pairs, atol=1e-6)


def test_forms_of_a_box_convert_and_back():
    boxes = jnp.array([[16.0, 28.0, 24.0, 32.0], [8.0, 8.0, 0.0, 4.0]])  # the second inside out
    np.testing.assert_array_equal(centre_and_size(boxes), [[20, 30, 8, 4], [4, 6, -8, -4]])
    np.testing.assert_array_equal(corners(centre_and_size(boxes)), boxes)


def test_the_border_of_a_box_is_not_inside():
    points = jnp.array([[4.0, 4.0], [8.0, 4.0], [7.999, 7.999], [0.0, 0.0], [-4.0, 4.0]])
    box = jnp.array([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 0.0, 0.0]])
    assert inside(points, box).tolist() == [[True, False, True, False, False], [False] * 5]


@pytest.mark.parametrize("size", [(0, 32), (32, -32), (48, 64), (64, 33)])
def test_sides_that_the_coarsest_cell_does_not_divide_are_refused(size):
    with pytest.raises(ValueError, match=r"(height|width)=-?\d+ pixels is not a positive multiple"):
        anchors(*size)
