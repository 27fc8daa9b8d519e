"""Matching and average precision: by hand, in plain Python loops, and by the COCO evaluator."""

import numpy as np
import pytest

from tests.train.detection import oracle
from train.detection.average_precision import evaluate, steps, trapezoids
from train.detection.coco import coco_numbers
from train.detection.matching import THRESHOLDS, claim_best, claim_best_free, join, match, overlap

PICTURES, CLASSES, OBJECTS, DETECTIONS = 12, 4, 8, 30


@pytest.fixture(scope="module")
def drawn():
    """Random pictures: objects, unordered detections near them and elsewhere, and padding."""
    random = np.random.default_rng(0)
    low = random.uniform(0, 20, (PICTURES, OBJECTS, 2))
    boxes = np.concatenate([low, low + random.uniform(10, 40, low.shape)], -1).astype(np.float32)
    labels = random.integers(0, CLASSES - 1, (PICTURES, OBJECTS))  # the last class has no object
    valid = random.random((PICTURES, OBJECTS)) < 0.7
    valid[3] = False
    detections = np.zeros((PICTURES, DETECTIONS, 6), np.float32)
    for i in range(PICTURES):
        of = random.integers(0, OBJECTS, DETECTIONS)
        noise = random.normal(0, 1, (DETECTIONS, 4)) * random.choice([0.5, 2, 8], (DETECTIONS, 1))
        detections[i, :, :4] = boxes[i, of] + noise
        wrong = random.random(DETECTIONS) < 0.1
        detections[i, :, 5] = np.where(
            wrong, random.integers(0, CLASSES, DETECTIONS), labels[i, of]
        )
        detections[i, :, 4] = random.uniform(0.01, 0.9, DETECTIONS)
    detections[5, 20:] = 0  # filling
    detections[6, 3, 4] = 0.001  # not above the limit
    return detections, boxes, labels, valid


def pairs_of_lists(drawn):
    """For every picture and class: detections by decreasing score, scores, objects."""
    for found, boxes, labels, valid in zip(*drawn, strict=True):
        for kind in range(CLASSES):
            rows = [row for row in found.astype(float) if row[5] == kind and row[4] > 0.001]
            rows.sort(key=lambda row: -row[4])
            goals = boxes[valid & (labels == kind)].astype(float)
            yield kind, [r[:4] for r in rows], [r[4] for r in rows], list(goals)


def by_loops(drawn, threshold, older):
    """Scores, hits and number of objects of every class that has objects, by the slow rewrite."""
    classes = {}
    for kind, rows, scores, goals in pairs_of_lists(drawn):
        pooled, count = classes.get(kind, ([], 0))
        hits = oracle.correct(rows, goals, threshold, older)
        classes[kind] = pooled + list(zip(scores, hits, strict=True)), count + len(goals)
    result = []
    for kind in range(CLASSES):
        pooled, count = classes[kind]
        pooled.sort(key=lambda pair: -pair[0])
        if count:
            result.append(([s for s, _ in pooled], [hit for _, hit in pooled], count))
    return result


@pytest.mark.parametrize("claim", [claim_best_free, claim_best])
def test_everything_equals_plain_python_loops(drawn, claim):
    found = evaluate(match(*drawn, classes=CLASSES, claim=claim))
    for column, threshold in enumerate(THRESHOLDS):
        classes = by_loops(drawn, threshold, older=claim is claim_best)
        expected = [oracle.average_precision(hits, count) for _, hits, count in classes]
        np.testing.assert_allclose(found.average_precision[:, column], expected, atol=1e-9)
    classes = by_loops(drawn, 0.5, older=claim is claim_best)
    confidence, precision, recall = oracle.best_f1(classes)
    assert found.confidence == pytest.approx(confidence)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    assert found.classes.tolist() == list(range(CLASSES - 1))
    assert found.objects.tolist() == [count for *_, count in classes]


def test_the_two_rules_of_matching_differ_on_the_draws(drawn):
    rules = [match(*drawn, classes=CLASSES, claim=claim) for claim in (claim_best_free, claim_best)]
    assert (rules[0].correct.sum(0) >= rules[1].correct.sum(0)).all()
    assert (rules[0].correct != rules[1].correct).any()


def test_with_steps_it_is_the_precision_of_the_coco_evaluator(drawn):
    scale = np.tile([2.0, 0.5], (PICTURES, 1))  # of the areas alone
    expected = coco_numbers(*drawn, scale=scale, classes=CLASSES)
    matches = match(*drawn, classes=CLASSES)
    found = evaluate(matches, area=steps)
    assert found.summary()["map50_95"] == pytest.approx(expected["AP"], abs=1e-9)
    assert found.summary()["map50"] == pytest.approx(expected["AP50"], abs=1e-9)
    assert found.average_precision[:, 5].mean() == pytest.approx(expected["AP75"], abs=1e-9)
    recall = [
        matches.correct[matches.classes == kind].sum(0) / matches.objects[kind]
        for kind in range(CLASSES - 1)
    ]
    assert np.mean(recall) == pytest.approx(expected["AR"], abs=1e-9)
    # A line between two recalls is above the step by half the fall times the distance of the
    # recalls, 1 / objects; 101 points leave 0.01 on either side of every fall.
    linear = evaluate(matches).average_precision
    assert (np.abs(linear - found.average_precision) < 0.5 / found.objects[:, None] + 0.02).all()
    assert np.abs(linear - found.average_precision).max() > 1e-4


def test_the_coco_evaluator_is_told_sizes_in_pixels_of_the_original_picture():
    box = np.array([[[0.0, 0, 40, 40]]])
    found = np.concatenate([box, [[[0.9, 0]]]], -1)
    for scale, size in (((4, 1), "small"), ((1, 1), "medium"), ((0.1, 1), "large")):
        numbers = coco_numbers(
            found, box, np.array([[0]]), np.array([[True]]), scale=np.array([scale]), classes=1
        )
        assert numbers["AP"] == numbers[f"AP_{size}"] == pytest.approx(1)
        assert sum(numbers[f"AP_{other}"] == -1 for other in ("small", "medium", "large")) == 2


def test_average_precision_by_hand():
    # A hit, a miss and a hit for two objects: precision 1 until recall 1/2, then 2/3.
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1, 1 / 2, 2 / 3])
    # 49 intervals at 1, one that falls to 2/3, 49 at 2/3, and one that falls to 0.
    expected = (49 + (1 + 2 / 3) / 2 + 49 * 2 / 3 + 1 / 3) / 100
    assert trapezoids(recall, precision) == pytest.approx(expected)
    assert steps(recall, precision) == pytest.approx((51 + 50 * 2 / 3) / 101)
    for area in (trapezoids, steps):
        assert area(np.array([0.0, 0.0]), np.array([0.0, 0.0])) == 0


def one_picture(rows, boxes, kinds, **options):
    """Matches of a single picture without padding."""
    arrays = np.array(rows, np.float32).reshape(-1, 6), np.array(boxes, np.float32)
    return match(
        arrays[0][None], arrays[1][None], np.array([kinds], int), np.ones((1, len(kinds)), bool),
        classes=3, **options,
    )  # fmt: skip


def test_matching_by_hand():
    left, right = [0, 0, 10, 10], [8, 0, 18, 10]
    rows = [
        [0, 0, 10, 10, 0.9, 0],  # exact
        [0, 0, 10, 9, 0.8, 0],  # IoU 0.9 with an object that is claimed, 1/9 with the other
        [8, 0, 18, 10, 0.7, 1],  # exact, but of another class
        [8, 0, 18, 6, 0.6, 0],  # IoU 0.6
        [8, 0, 18, 10, 0.5, 0],  # exact: free where 0.6 was not enough
    ]
    found = one_picture(rows[::-1], [left, right], [0, 0])
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert found.correct.sum(1).tolist() == [10, 0, 0, 3, 7]  # of thresholds 0.50, 0.55, ... 0.95
    assert found.objects.tolist() == [2, 0, 0]
    assert found.classes.tolist() == [0, 0, 1, 0, 0]


def test_a_detection_may_claim_its_second_choice_under_one_rule_alone():
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10]]
    rows = [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 0]]
    for claim, expected in ((claim_best_free, [True, True]), (claim_best, [True, False])):
        assert one_picture(rows, boxes, [0, 0], claim=claim).correct[:, 0].tolist() == expected


@pytest.mark.parametrize(("area", "expected"), [(steps, 1.0), (trapezoids, 0.995)])
def test_perfect_detections(drawn, area, expected):
    _, boxes, labels, valid = drawn
    perfect = np.concatenate([boxes, valid[..., None], labels[..., None]], -1)
    found = evaluate(match(perfect, boxes, labels, valid, classes=CLASSES), area=area)
    np.testing.assert_allclose(found.average_precision, expected)
    assert found.summary()["precision"] == found.summary()["recall"] == 1
    assert found.summary()["fitness"] == pytest.approx(expected)


def test_neither_order_nor_filling_nor_batches_matter(drawn):
    expected = evaluate(match(*drawn, classes=CLASSES))
    random = np.random.default_rng(1)
    detections, boxes, labels, valid = (
        x[random.permutation(PICTURES) * 0 + range(PICTURES)] for x in drawn
    )
    columns = random.permutation(DETECTIONS)
    filling = np.full((PICTURES, 5, 6), [np.nan] * 5 + [0], np.float32)
    detections = np.concatenate([detections[:, columns], filling], 1)
    parts = [
        match(*(x[start : start + 5] for x in (detections, boxes, labels, valid)), classes=CLASSES)
        for start in (10, 0, 5)
    ]
    found = evaluate(join(parts))
    for name in ("average_precision", "precision", "recall", "objects", "curves"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_objects_that_nothing_was_taken_for_count_as_missed():
    nothing = np.zeros((0, 6))
    found = evaluate(one_picture(nothing, [[0, 0, 9, 9], [0, 0, 5, 5]], [0, 2]))
    assert found.classes.tolist() == [0, 2]
    assert set(found.summary().values()) == {0.0}
    for claim in (claim_best, claim_best_free):  # and a detection without any objects
        empty = one_picture([[0, 0, 9, 9, 0.5, 1]], np.zeros((0, 4)), [], claim=claim)
        assert not empty.correct.any()
        assert empty.correct.shape == (1, 10)


def test_boxes_without_area_overlap_nothing():
    boxes = np.array([[5, 5, 5, 5], [9, 9, 1, 1], [0, 0, 10, 10], [np.nan] * 4, [0, 0, np.inf, 1]])
    table = overlap(boxes, boxes[:3])
    assert np.isfinite(table).all()
    np.testing.assert_allclose(table, np.diag([0, 0, 1, 0, 0])[:, :3])


@pytest.mark.parametrize(
    ("rows", "kinds", "message"),
    [
        ([[0, 0, 1, 1, 0.5, 3]], [0], "a class of the detections is 3, not one of the 3 classes"),
        ([[0, 0, 1, 1, 0.5, 0.5]], [0], "a class of the detections is 0.5, "),
        ([[0, 0, 1, 1, 0.5, 0]], [-1], "a class of the objects is -1, "),
    ],
)
def test_unknown_classes_are_refused(rows, kinds, message):
    with pytest.raises(ValueError, match=message):
        one_picture(rows, [[0, 0, 1, 1]], kinds)


@pytest.mark.parametrize("claim", [claim_best, claim_best_free])
def test_without_objects_every_detection_is_a_false_positive(claim):
    rows = [[0, 0, 1, 1, 0.5, 0], [0, 0, 1, 1, 0.002, 2], [0, 0, 1, 1, 0.001, 2]]
    found = evaluate(one_picture(rows, np.zeros((0, 4)), [], claim=claim))
    assert found.classes.size == found.objects.size == 0
    names = ("precision", "recall", "map50", "map50_95", "fitness")
    assert found.summary() == dict.fromkeys(names, 0.0) | {"false_positives": 2.0}


def test_false_positives_are_counted_at_the_confidence_of_the_best_f1():
    objects = [[0, 0, 10, 10], [20, 0, 30, 10]]
    rows = [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.85, 0], [20, 0, 30, 10, 0.8, 0]]
    elsewhere = [[50, 50, 60, 60, 0.9, 2], [50, 50, 60, 60, 0.1, 2], [0, 0, 10, 10, 0.2, 0]]
    found = evaluate(one_picture(rows + elsewhere, objects, [0, 0]))
    assert 0.2 < found.confidence < 0.8
    assert found.false_positives == 2  # the repeated one, and one of a class without objects
