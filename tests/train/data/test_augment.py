"""Mosaic, zoom and shift by hand, and colours against a slow conversion."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from train.data.augment import Augmentation, around, place_boxes, recolour, whole
from train.data.geometry import Placement
from train.data.pictures import Picture
from train.errors import BadInput


def picture(size: tuple[int, int], *boxes: tuple[float, float, float, float]) -> Picture:
    labels = np.arange(len(boxes), dtype=np.int32)
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Picture(Image.new("RGB", size), size, array, labels)


def test_four_pictures_touch_the_centre_with_a_corner_each():
    sizes = [(500, 375), (375, 500), (100, 100), (333, 500)]
    fitted = [(64, 48), (48, 64), (64, 64), (43, 64)]
    placements = around([picture(size) for size in sizes], [50, 70], 64)
    offsets = [(50 - 64, 70 - 48), (50, 70 - 64), (50 - 64, 70), (50, 70)]
    for size, new, placement, offset in zip(sizes, fitted, placements, offsets, strict=True):
        assert placement.offset == offset
        assert placement.window == (0, 0, 128, 128)
        np.testing.assert_allclose(np.multiply(placement.scale, size), new)


def test_a_single_picture_is_its_own_canvas():
    placement = whole(picture((500, 375)), 64)
    assert placement == Placement((0.128, 0.128), (0, 0), (0, 0, 64, 48))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 10, 30, 30), (20, 20, 60, 60)),
        ((40, 10, 60, 30), (80, 20, 100, 60)),  # half of it is cut off by the result
        ((48.2, 10, 68.2, 30), None),  # 9 percent of the area on the canvas is left
        ((47.9, 10, 67.9, 30), (95.8, 20, 100, 60)),  # just more than a tenth is left
        ((-15, 10, 5, 30), (0, 20, 10, 60)),  # the canvas cuts it first: all of what is left
        ((-20, 10, 0, 30), None),  # nothing of it on the canvas
        ((10, 10, 11, 30), None),  # 2 pixels wide, which is not more than 2
        ((10, 10, 11.1, 30), (20, 20, 22.2, 60)),
    ],
)
def test_boxes_are_clipped_and_kept_by_the_rules(
    box: tuple[float, ...], expected: tuple[float, ...] | None
):
    """The upper left 100 pixels of a canvas of 128, at twice its size."""
    placement = Placement((1.0, 1.0), (0.0, 0.0), (0.0, 0.0, 128.0, 128.0))
    boxes, kept = place_boxes(picture((128, 128), box), placement, 2.0, (0.0, 0.0), 100)
    np.testing.assert_allclose(boxes, [expected] if expected else np.zeros((0, 4)), rtol=1e-6)
    assert kept.tolist() == ([0] if expected else [])


def test_long_thin_boxes_are_dropped():
    placement = Placement((1.0, 1.0), (0.0, 0.0), (0.0, 0.0, 1000.0, 1000.0))
    both = picture((1000, 1000), (0, 0, 300, 3), (0, 0, 299, 3))
    assert place_boxes(both, placement, 1.0, (0.0, 0.0), 1000)[1].tolist() == [1]


def test_scale_and_shift_are_composed():
    first = Placement((0.5, 0.25), (3.0, 4.0), (0.0, 0.0, 20.0, 10.0))
    box = np.asarray([[1.0, 2.0, 9.0, 7.0]], np.float32)
    expected = 3 * first.boxes(box) + np.asarray([5.0, 6.0, 5.0, 6.0])
    np.testing.assert_allclose(first.then(3.0, (5.0, 6.0)).boxes(box), expected)
    assert first.then(3.0, (5.0, 6.0)).window == (5, 6, 65, 36)


@pytest.mark.parametrize("draws", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 1), (0.5, -0.5, -1)])
def test_colours_follow_hue_saturation_and_value(draws: tuple[float, float, float]):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
    pixels[0, :, :] = pixels[0, :, :1]  # grays
    augmentation = Augmentation(hue=0.1, saturation=0.7, brightness=0.4)
    found = np.asarray(recolour(Image.fromarray(pixels), augmentation, np.asarray(draws, float)))
    change = np.multiply(draws, (0.1, 0.7, 0.4))
    expected = np.empty(pixels.shape)
    for at in np.ndindex(12, 12):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[at] / 255))
        s, v = min(s * (1 + change[1]), 1), min(v * (1 + change[2]), 1)
        expected[at] = np.multiply(colorsys.hsv_to_rgb((h + change[0]) % 1, s, v), 255)
    # a hue step of 1/255 moves a channel by up to 6 levels, rounding of all three by a few more
    np.testing.assert_allclose(found, expected, atol=10)
    assert np.abs(found - expected).mean() < 2
    assert np.ptp(found[0].astype(int), axis=-1).max() == 0


def test_no_change_of_colour_changes_no_pixel():
    image = Image.new("RGB", (4, 4), (7, 99, 200))
    still = Augmentation(hue=0, saturation=0, brightness=0)
    assert recolour(image, still, np.ones(3)) is image


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mosaic": 1.5}, r"mosaic=1\.5 must lie between 0 and 1"),
        ({"zoom": 1.0}, r"zoom=1\.0 must be at least 0 and less than 1"),
        ({"shift": 0.6}, r"shift=0\.6 must lie between 0 and 0\.5"),
        ({"plain_epochs": -1}, "plain_epochs=-1 must be at least 0"),
    ],
)
def test_impossible_augmentation_is_refused(fields: dict[str, float], message: str):
    with pytest.raises(BadInput, match=message):
        Augmentation(**fields)
