"""Letterbox against golden numbers, and where drawn pictures land, in pixels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.train.data.boxes import extent, rectangle
from train.data.geometry import Placement, draw, fitted_size, letterbox, letterboxed
from train.data.pictures import Picture


@pytest.mark.parametrize("size", [320, 640])
@pytest.mark.parametrize("upscale", [False, True])
def test_letterbox_agrees_with_the_reference(shared: Path, size: int, upscale: bool):
    golden = np.load(shared / "golden" / "yolo26_a.npz")
    expected = golden[f"letterbox/size{size}_up{int(upscale)}_ratio_w_h_top_bottom_left_right"]
    shapes = golden["letterbox/shapes_hw"]
    found = [letterbox(int(h), int(w), size, upscale=upscale) for h, w in shapes]
    np.testing.assert_array_equal(np.asarray(found)[:, 1:], expected[:, 1:])
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected[:, 0], rtol=1e-15)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([32, 320, 640]))
def test_a_letterbox_fills_its_square(height: int, width: int, size: int):
    box = letterbox(height, width, size)
    assert box.left + box.width + box.right == box.top + box.height + box.bottom == size
    assert max(box.width, box.height) == size
    assert min(box[1:]) >= 0
    assert 0 <= box.bottom - box.top <= 1
    assert 0 <= box.right - box.left <= 1


def test_the_longer_side_is_fitted_and_the_other_rounded_up():
    assert fitted_size((500, 333), 640) == (640, 427)
    assert fitted_size((333, 500), 640) == (427, 640)
    assert fitted_size((640, 480), 320) == (320, 240)
    assert fitted_size((1000, 20), 320) == (320, 7)


@pytest.mark.parametrize("size", [(200, 150), (150, 200), (333, 500), (64, 64), (37, 53)])
def test_a_rectangle_lands_in_its_letterboxed_box(size: tuple[int, int]):
    width, height = size
    box = (width // 5, height // 4, width // 5 + width // 3, height // 4 + height // 2)
    image = rectangle(size, box, (250, 250, 250))
    picture = Picture(image, size, np.asarray([box], np.float32), np.zeros(1, np.int32))
    canvas = Image.new("RGB", (160, 160), (114, 114, 114))
    placement = letterboxed(size, 160)
    draw(canvas, picture, placement)
    found = extent(np.asarray(canvas)[:, :, 0] > 135)
    np.testing.assert_allclose(placement.boxes(picture.boxes), [found], atol=1)


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.floats(0.05, 8),
    st.floats(0.05, 8),
    st.floats(-200, 200),
    st.floats(-200, 200),
    st.sampled_from([1, 2, 4, 8]),
)
def test_a_picture_covers_the_pixels_whose_centres_lie_on_it(
    size: tuple[int, int], sx: float, sy: float, x: float, y: float, reduced: int
):
    shape = tuple(-(-side // reduced) for side in size)
    image = Image.new("RGB", shape, (255, 255, 255))
    picture = Picture(image, size, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), reduced)
    canvas = Image.new("RGB", (64, 48))
    draw(canvas, picture, Placement((sx, sy), (x, y), (0.0, 0.0, 50.0, 48.0)))
    columns, rows = np.arange(64) + 0.5, np.arange(48) + 0.5
    across = (columns >= x) & (columns < x + sx * size[0]) & (columns < 50)
    down = (rows >= y) & (rows < y + sy * size[1])
    expected = down[:, None] & across
    np.testing.assert_array_equal(np.asarray(canvas)[:, :, 0] == 255, expected)


def test_a_gradient_is_drawn_where_the_placement_puts_it():
    """A linear gradient shows where the centre of each pixel came from."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    picture = Picture(
        Image.fromarray(ramp), (200, 100), np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    )
    for scale, offset in ((0.7, 3.3), (1.6, -40.2), (2.5, 10.0)):
        canvas = Image.new("RGB", (120, 120))
        draw(canvas, picture, Placement((scale, scale), (offset, 0), (0.0, 0.0, 120.0, 120.0)))
        centres = (np.arange(120) + 0.5 - offset) / scale  # in picture pixels
        inside = (centres > 4) & (centres < 196)
        value = np.asarray(canvas)[10, :, 0]
        # half a canvas pixel at an edge that shows, and half a gray level
        np.testing.assert_allclose(value[inside], centres[inside] - 0.5, atol=0.5 / scale + 0.5)


def test_what_a_reduced_image_shows_is_where_the_whole_one_shows_it():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((333, 250), 3)
    whole = Picture(smooth, (333, 250), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    reduced = whole._replace(image=smooth.reduce(4), reduced=4)
    drawn = []
    for picture in (whole, reduced):
        canvas = Image.new("RGB", (64, 64))
        draw(canvas, picture, letterboxed((333, 250), 64))
        drawn.append(np.asarray(canvas, float))
    np.testing.assert_allclose(drawn[0], drawn[1], atol=6)
