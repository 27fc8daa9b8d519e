"""Pascal VOC annotations: objects and boxes from the XML of any program."""

import math
import re
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from train.data.decoding import Box, Frame
from train.data.pictures import Trouble
from train.errors import one_line

SIDES = ("xmin", "ymin", "xmax", "ymax")

TURNED = (
    "picture with an EXIF orientation, and an annotation that fits its stored and its upright "
    "pixels alike, boxes taken as those of the upright ones"
)

_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")
_OWN = ("utf-8", "us-ascii", "iso-8859-1")  # what expat knows


def parse_annotation(data: bytes, frame: Frame) -> tuple[list[tuple[str, Box]], list[Trouble]]:
    """Reads the objects of a VOC annotation.

    VOC counts pixels from 1: a box is `(xmin, ymin, xmax, ymax) - 1` in pixels that count from 0,
    its centre `(min + max) / 2 - 1`, its size `max - min`. Objects marked difficult are left out.

    If the image is stored turned, its stated size tells whether the boxes are those of the stored
    pixels, which are then turned with them. If it does not tell, they are taken as those of the
    upright image.

    Args:
        data: the XML file.
        frame: size and orientation of the image, to which boxes are clipped.

    Returns:
        Class name and box (left, top, right, bottom) of each object in the upright image; and
        what was dropped or changed, each with a detail that may be empty.

    Raises:
        ValueError: not XML, or with a DOCTYPE.
    """
    root = _parse(data)
    found: list[tuple[str, Box]] = []
    size, trouble = _annotated_size(frame, _stated_size(root))
    turned = size != frame.size  # turned squares cannot be told apart
    for node in root.findall("object"):
        if _is_true(node.findtext("difficult")):
            continue
        name = one_line(node.findtext("name") or "")
        box, problem = _box(node, size)
        if problem:
            trouble.append((problem, ""))
        if box is None:
            continue
        item = name, frame.upright(box) if turned else box
        if not name:
            trouble.append(("object without a class name, dropped", ""))
        elif item in found:
            trouble.append(("repeated object, dropped", ""))
        else:
            found.append(item)
    if root.find("object") is None:
        trouble.append(("annotation without objects, picture used as background", ""))
    return found, trouble


def clip_box(box: Box, size: tuple[int, int]) -> tuple[Box | None, str | None]:
    """Clips a box to an image. One pixel outside is accepted: some files count from 0.

    Returns:
        The box, None if nothing is left of it; and what was wrong.
    """
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return None, "box that is not numbers, dropped"
    if right <= left or bottom <= top:
        return None, "box without area, dropped"
    width, height = size
    clipped = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, "box outside the image, dropped"
    beyond = max(-left, -top, right - width, bottom - height)
    return clipped, "box partly outside the image, clipped" if beyond > 1 else None


def _annotated_size(
    frame: Frame, stated: tuple[int, int] | None
) -> tuple[tuple[int, int], list[Trouble]]:
    """The size, upright or stored, of the image that the boxes belong to; and what is unknown."""
    trouble: list[Trouble] = []
    if stated not in (None, frame.size, frame.stored):
        detail = f"states {stated[0]} x {stated[1]} for {frame.width} x {frame.height} pixels"
        trouble.append(("annotation that states another image size, used", detail))
    if frame.size != frame.stored and stated in (frame.size, frame.stored):
        return stated, trouble
    if frame.orientation != 1:
        trouble.append((TURNED, f"EXIF orientation {frame.orientation}"))
    return frame.size, trouble


def _stated_size(root: Element) -> tuple[int, int] | None:
    """Width and height of the image as the annotation states them, None if it does not."""
    try:
        width, height = (int(float(root.findtext(f"size/{x}") or 0)) for x in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _is_true(text: str | None) -> bool:
    """Whether a flag is set: 1, true, yes.

    Example:
        >>> [_is_true(text) for text in ("1", " True ", "yes", "1.0", "0", "Unspecified", None)]
        [True, True, True, True, False, False, False]
    """
    word = (text or "").strip().lower()
    return word in ("true", "yes", "y", "t") or bool(re.fullmatch(r"0*1(\.0*)?", word))


def _parse(data: bytes) -> Element:
    """The root of an XML document, tags in lower case.

    A DOCTYPE is refused: its entities could expand without end, or fetch files.
    """
    data = data.lstrip()  # expat accepts nothing before the declaration
    declared = _DECLARED.match(data)  # not in UTF-16, which expat recognizes by itself
    encoding = declared[1].decode().lower() if declared else "utf-8"
    builder = TreeBuilder()
    try:
        parser = expat.ParserCreate(None if encoding in _OWN else "utf-8")
        if encoding not in _OWN and not encoding.startswith("utf-16"):  # some write that as UTF-8
            data = data.decode(encoding).encode()
        parser.buffer_text = True
        parser.StartElementHandler = lambda tag, attributes: builder.start(tag.lower(), attributes)
        parser.EndElementHandler = lambda tag: builder.end(tag.lower())
        parser.CharacterDataHandler = builder.data
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding unknown to Python
        raise ValueError(str(error)) from None


def _refuse_doctype(*_: object) -> None:
    """Refuses a document type, which annotations do not need."""
    raise ValueError("it has a DOCTYPE, which annotations need not and which can define entities")


def _box(node: Element, size: tuple[int, int]) -> tuple[Box | None, str | None]:
    """The box of an object, clipped; None and a reason if it has none."""
    try:
        left, top, right, bottom = (
            float(node.findtext(f"bndbox/{side}") or "nan") - 1 for side in SIDES
        )
    except ValueError:
        return None, "box that is not numbers, dropped"
    return clip_box((left, top, right, bottom), size)
