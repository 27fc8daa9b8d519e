"""Annotations out of any XML, in the frame of an upright or a turned picture."""

import numpy as np
import pytest
from PIL import Image

from tests.train.data.boxes import annotation, extent
from train.data.decoding import TURNS, Frame
from train.data.voc_annotation import TURNED, parse_annotation

CAT = ("cat", (11, 6, 31, 26))
FRAME = Frame(60, 40)
DECLARED = '<?xml version="1.0" encoding="{}"?>'


def names(data: bytes) -> list[str]:
    return [name for name, _ in parse_annotation(data, FRAME)[0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "it has a DOCTYPE"),
        ("<annotation>", "no element found"),
        ("<annotation>&b;</annotation>", "undefined entity"),
        (DECLARED.format("klingon") + "<annotation/>", "klingon"),
        (DECLARED.format("hex") + "<annotation/>", "hex"),
        ("", "no element found"),
    ],
)
def test_what_is_not_plain_xml_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_annotation(text.encode(), FRAME)


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        *(("", "utf-8"), ("", "utf-8-sig"), ("", "utf-16"), ("utf-8", "utf-8-sig")),
        *(("utf-16", "utf-16"), ("utf-16", "utf-8"), ("GBK", "gbk"), ("Shift_JIS", "shift_jis")),
    ],
)
def test_annotations_are_read_in_any_encoding_and_their_doctype_is_refused(
    declared: str, encoding: str
):
    start = DECLARED.format(declared) if declared else ""
    text = annotation([("猫\n 日本", CAT[1])])
    assert names((start + text).encode(encoding)) == ["猫 日本"]
    with pytest.raises(ValueError, match="DOCTYPE"):
        parse_annotation(f"{start}<!DOCTYPE a>{text}".encode(encoding), FRAME)


def test_blank_lines_before_the_declaration_and_tags_in_capitals_are_read():
    text = "\n\n" + DECLARED.format("utf-8") + annotation([CAT])
    assert names(text.encode()) == ["cat"]
    assert names(text.replace("object>", "Object>").replace("name>", "NAME>").encode()) == ["cat"]


def test_names_keep_their_characters_in_one_line():
    written = [
        "a $ b",
        "x_$1$",
        "日本",
        "a,b &quot;q&quot; &lt;c>",
        " Cat\r\n\tof mine ",
        "a\u2028b",
    ]
    found = names(annotation([(name, CAT[1]) for name in written]).encode())
    assert found == ["a $ b", "x_$1$", "日本", 'a,b "q" <c>', "Cat of mine", "a b"]


@pytest.mark.parametrize(
    ("flag", "kept"),
    [
        *((f"<difficult>{x}</difficult>", 0) for x in ("1", "True", "yes", "1.0", " 1\n", "TRUE")),
        *((f"<difficult>{x}</difficult>", 1) for x in ("0", "False", "no", "", "Unspecified")),
        *(("<Difficult>1</Difficult>", 0), ("<difficult/>", 1), ("", 1)),
    ],
)
def test_difficult_objects_are_left_out_whatever_the_flag_is_written_as(flag: str, kept: int):
    assert len(names(annotation([CAT], extra=flag).encode())) == kept


def test_one_pixel_outside_is_accepted():
    objects, trouble = parse_annotation(annotation([("cat", (0, 0, 61, 41))]).encode(), FRAME)
    assert objects == [("cat", (0, 0, 60, 40))]
    assert not trouble


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_as_the_pixels_are(orientation: int):
    stored = np.zeros((40, 60), np.uint8)
    stored[5:25, 10:30] = 255
    image = Image.fromarray(stored)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    frame = Frame(*image.size, orientation)
    assert frame.stored == (60, 40)
    assert frame.upright((10, 5, 30, 25)) == extent(np.asarray(image) > 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stated", [(60, 40), (40, 60), (0, 0), (600, 400)])
def test_the_stated_size_decides_the_frame_of_the_boxes_and_what_is_unknown_is_said(
    orientation: int, stated: tuple[int, int]
):
    """The stored picture has 60 x 40 pixels; turned by a quarter the upright one has 40 x 60."""
    quarter = orientation >= 5
    frame = Frame(*((40, 60) if quarter else (60, 40)), orientation)
    box = (10.0, 5.0, 30.0, 25.0)
    found, trouble = parse_annotation(annotation([CAT], stated).encode(), frame)
    drawn_on_stored = quarter and stated == (60, 40)
    assert found == [("cat", frame.upright(box) if drawn_on_stored else box)]
    kinds = {kind for kind, _ in trouble}
    decided = orientation == 1 or (quarter and stated in ((60, 40), (40, 60)))
    assert (TURNED in kinds) == (not decided)
    other = stated != (0, 0) and stated not in (frame.size, frame.stored)
    assert ("annotation that states another image size, used" in kinds) == other
    assert len(kinds) == len(trouble) == (not decided) + other


def test_a_turned_square_cannot_be_decided():
    found, trouble = parse_annotation(annotation([CAT], (50, 50)).encode(), Frame(50, 50, 6))
    assert found == [("cat", (10, 5, 30, 25))]
    assert trouble == [(TURNED, "EXIF orientation 6")]
