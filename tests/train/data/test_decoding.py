"""Pictures of all modes, depths and orientations as upright 8-bit RGB, against their own pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from train.data.decoding import GRAY, IMAGE_SUFFIXES, TURNS, Frame, check_image, decode, scaled

RAMP = np.arange(240, dtype=np.uint8).reshape(12, 20)  # gray levels 0 .. 239
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def encoded(image: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    assert check_image(data).size == image.size
    return np.asarray(image)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, -1)


@pytest.mark.parametrize(
    "image",
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(">u2") * 257, "TIFF"),
        (RAMP.astype(np.uint16) * 16, "PNG"),  # 12 bits of 16
        (RAMP.astype(np.uint16), "PNG"),  # 8 bits of 16
        (RAMP.astype(np.int32) * 257, "TIFF"),
        (RAMP.astype(np.float32) / 255, "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        (RAMP, "PNG"),
    ],
    ids=lambda image: f"{image[1]}-{image[0].dtype}-{image[0].max()}",
)
def test_gray_values_of_any_depth_are_those_of_eight_bits(image: tuple[np.ndarray, str]):
    np.testing.assert_allclose(pixels(encoded(*image)).astype(int), gray(RAMP), atol=1)


def test_values_without_a_known_range_are_scaled_by_their_own():
    hounsfield = np.linspace(-1000, 3000, 240).astype(np.int32).reshape(12, 20)
    found = pixels(encoded(hounsfield, "TIFF"))
    np.testing.assert_allclose(found, gray(np.linspace(0, 255, 240).reshape(12, 20)), atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(value: float):
    data = encoded(np.full((4, 4), value, np.float32), "TIFF")
    for function in (decode, check_image):
        with pytest.raises(ValueError, match="pixels that are NaN or infinite"):
            function(data)


@given(
    hnp.arrays(
        st.sampled_from([np.uint16, np.int32, np.float32]),
        (3, 4),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_scaling_keeps_the_order_of_all_values(values: np.ndarray):
    found = scaled(values)
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()
    if values.min() < 0 or values.max() > 65535:
        assert found.min() == 0
        assert found.max() == 255 or values.min() == values.max()


def test_transparent_pixels_show_gray_whatever_their_hidden_colour():
    alpha = np.zeros((12, 20), np.uint8)
    alpha[:4], alpha[4:8] = 255, 128
    shares = alpha[..., None] / 255
    expected = COLOURS * shares + np.asarray(GRAY) * (1 - shares)
    for form in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        data = encoded(np.dstack([COLOURS, alpha]), form, **options)
        np.testing.assert_allclose(pixels(data), expected, atol=1)
    data = encoded(Image.fromarray(np.dstack([RAMP, alpha]), "LA"), "PNG")
    expected = gray(RAMP) * shares + np.asarray(GRAY) * (1 - shares)
    np.testing.assert_allclose(pixels(data), expected, atol=1)


@pytest.mark.parametrize(
    ("image", "transparency", "opaque"),
    [
        (Image.new("1", (2, 1)), 0, None),
        (Image.new("L", (2, 1), 7), 7, None),
        (Image.new("RGB", (2, 1), (7, 8, 9)), (7, 8, 9), None),
        (Image.new("RGB", (2, 1), (7, 8, 9)), (9, 8, 7), (7, 8, 9)),
        (Image.fromarray(np.full((1, 2), 1799, np.uint16)), 1799, None),
        (Image.fromarray(np.full((1, 2), 7 * 16, np.uint16)), 8, (112, 112, 112)),
    ],
)
def test_a_transparent_colour_shows_gray(image: Image.Image, transparency: Any, opaque: Any):
    found = pixels(encoded(image, "PNG", transparency=transparency))
    assert found.tolist() == [[list(opaque or GRAY)] * 2]


def test_palettes_are_looked_up_and_their_transparency_shows_gray():
    image = Image.fromarray(np.asarray([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert pixels(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    found = pixels(encoded(image, "PNG", transparency=bytes([255, 0, 255])))
    assert found.tolist() == [[[10, 20, 30], list(GRAY), [70, 80, 90]]]
    found = pixels(encoded(image, "GIF", transparency=1))
    assert found.tolist() == [[[10, 20, 30], list(GRAY), [70, 80, 90]]]


def test_inks_are_colours():
    inks = Image.new("CMYK", (16, 16))
    inks.paste((0, 255, 255, 0), (0, 0, 8, 16))  # red
    inks.paste((0, 0, 0, 255), (8, 0, 16, 16))  # black
    found = pixels(encoded(inks, "JPEG", quality=100))
    np.testing.assert_allclose(found[:, 2], [[255, 0, 0]] * 16, atol=3)
    np.testing.assert_allclose(found[:, 13], [[0, 0, 0]] * 16, atol=3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_is_applied(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(form, {})
    smooth = np.asarray(Image.fromarray(COLOURS).resize((60, 40)))
    data = encoded(smooth, form, exif=exif, **options)
    upright = Image.fromarray(smooth)
    if orientation in TURNS:
        upright = upright.transpose(TURNS[orientation])
    known = orientation if 1 <= orientation <= 8 else 1
    assert check_image(data) == Frame(*upright.size, known)
    np.testing.assert_allclose(pixels(data), np.asarray(upright), atol=12 if form == "JPEG" else 0)
    small = decode(data, needed=20)
    assert small.size in (upright.size, tuple(-(-side // 2) for side in upright.size))


def test_damaged_metadata_leave_the_picture_as_it_is_stored():
    exif = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"
    data = encoded(COLOURS, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), COLOURS)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(COLOURS, "PNG")[:-30]])
def test_what_cannot_be_decoded_is_one_kind_of_error_without_addresses(data: bytes):
    for function in (decode, check_image):
        with pytest.raises(ValueError, match=r"^[^@<]+$"):
            function(data)


def test_every_suffix_is_one_that_pillow_knows():
    known = Image.registered_extensions()
    assert set(IMAGE_SUFFIXES) <= known.keys()


def test_one_drawing_saved_in_many_modes_is_the_same_picture(shared: Path):
    folder = shared / "cases" / "voc" / "modes" / "JPEGImages"

    def read(name: str) -> np.ndarray:
        return np.asarray(decode((folder / name).read_bytes())).astype(int)

    drawing = read("bmp.bmp")
    luminance = gray(np.asarray(Image.open(folder / "bmp.bmp").convert("L")).astype(int))
    for name, expected, most in (
        *(("rgba.png", drawing, 0), ("la.png", luminance, 0)),
        *(("i16.png", luminance, 0), ("i12.png", luminance, 1), ("alpha0.png", GRAY[0], 0)),
    ):
        assert np.abs(read(name) - expected).max() <= most, name
    for name, expected in (("cmyk.jpg", drawing), ("gray.jpg", luminance), ("p.png", drawing)):
        assert np.abs(read(name) - expected).mean() < 15, name  # lossy, or few colours
