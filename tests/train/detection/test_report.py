"""Tables, curves and pictures of an evaluation."""

import numpy as np
import pytest
from PIL import Image

from train.detection.average_precision import evaluate
from train.detection.drawing import class_colour, draw_detections
from train.detection.matching import match
from train.detection.report import class_table, draw_curves

NAMES = ("cat", "submarine", "dog")


@pytest.fixture(scope="module")
def evaluation():
    """A cat that was found and a dog that was not."""
    boxes = np.array([[[0, 0, 9, 9], [20, 20, 30, 30]]], np.float32)
    found = np.array([[[0, 0, 9, 9, 0.8, 0], [50, 50, 60, 60, 0.6, 2]]], np.float32)
    return evaluate(match(found, boxes, np.array([[0, 2]]), np.ones((1, 2), bool), classes=3))


def test_the_table_has_a_line_a_class_with_objects(evaluation):
    assert class_table(evaluation, NAMES).splitlines() == [
        "class objects precision recall  AP50 AP50-95",
        "all         2     0.500  0.500 0.497   0.497",
        "cat         1     1.000  1.000 0.995   0.995",
        "dog         1     0.000  0.000 0.000   0.000",
        "false positives: 1 at confidence 0.000",
    ]


# A name from a user's annotations may be anything; the last four are wide, or without glyphs.
DIFFICULT_NAMES = ("$x", "a $ b", r"\frac", "_^{", "кот", "日本", "日本語", "🙂", "\ue000")


def test_names_of_any_characters_are_written_and_drawn_without_a_warning(tmp_path):
    count = len(DIFFICULT_NAMES)
    boxes = np.array([[[10 * i, 0, 10 * i + 9, 9] for i in range(count)]], np.float32)
    labels, scores = np.arange(count), np.full((count, 1), 0.9)
    rows = np.concatenate([boxes[0], scores, labels[:, None]], 1)
    matches = match(rows[None], boxes, labels[None], np.ones((1, count), bool), classes=count)
    found = evaluate(matches)
    lines = class_table(found, DIFFICULT_NAMES).splitlines()
    assert [line.split("  ")[0] for line in lines[2:-1]] == list(DIFFICULT_NAMES)
    assert lines[-4] == "日本語       1     1.000  1.000 0.995   0.995"
    draw_curves(found, DIFFICULT_NAMES, tmp_path / "curves.png")
    drawn = draw_detections(Image.new("RGB", (100, 20)), rows, DIFFICULT_NAMES)
    assert drawn.size == (700, 140)


def test_without_objects_tables_and_curves_are_written(tmp_path):
    found = np.array([[[0, 0, 9, 9, 0.8, 0]]], np.float32)
    nothing = np.zeros((1, 1, 4)), np.zeros((1, 1), int), np.zeros((1, 1), bool)
    empty = evaluate(match(found, *nothing, classes=3))
    assert class_table(empty, NAMES).splitlines() == [
        "class objects precision recall  AP50 AP50-95",
        "all         0     0.000  0.000 0.000   0.000",
        "false positives: 1 at confidence 0.000",
    ]
    draw_curves(empty, NAMES, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_curves_are_written_as_a_picture(evaluation, tmp_path):
    draw_curves(evaluation, NAMES, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1050, 750)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_a_frame_is_where_the_box_is_and_the_original_is_left_alone():
    original = Image.new("RGB", (320, 200), (40, 40, 40))
    rows = np.array([[50, 60, 150, 160, 0.9, 1], [200, 20, 250, 60, 0.2, 0]])
    drawn = draw_detections(original, rows, NAMES, objects=np.array([[52.0, 62, 148, 158]]))
    assert drawn.size == (640, 400)
    assert set(np.asarray(original).reshape(-1, 3).ravel()) == {40}
    pixels = np.asarray(drawn)
    colour = class_colour(1)
    for x, y in ((101, 200), (200, 319), (300, 200)):
        assert tuple(pixels[y, x]) == colour
    assert tuple(pixels[200, 104]) == (255, 255, 255)  # the object
    plate = (pixels == colour).all(-1)[90:119, 100:240]
    assert plate.mean() > 0.3
    assert (pixels[:, 400:] == 40).all()  # a score below the limit


@pytest.mark.parametrize(
    "box", [(-50, -50, 500, 300), (310, 190, 700, 900), (30, 20, 10, 5), (np.nan, 0, 9, 9)]
)
def test_boxes_across_the_edge_or_inside_out_keep_their_label_in_the_picture(box):
    picture = Image.new("L", (320, 200), 0)
    drawn = np.asarray(draw_detections(picture, np.array([[*box, 0.9, 2]]), NAMES))
    assert (drawn == class_colour(2)).all(-1).sum() > 200


def test_classes_have_colours_of_their_own():
    colours = np.array([class_colour(kind) for kind in range(20)], float)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert distances[~np.eye(20, dtype=bool)].min() > 20
    assert len(set(map(tuple, colours))) == 20
