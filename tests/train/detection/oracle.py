"""Matching and average precision in plain Python: one detection, object and recall at a time."""

import itertools


def iou(a, b):
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared + 1e-7)


def correct(detections, objects, threshold, older):
    """Which detections of one picture and class are correct; lists by decreasing score."""
    claimed, result = set(), []
    for box in detections:
        pairs = [(iou(box, goal), -i) for i, goal in enumerate(objects)]
        if not older:
            pairs = [pair for pair in pairs if -pair[1] not in claimed]
        value, negative = max(pairs, default=(0.0, 0))
        hit = value >= threshold and -negative not in claimed
        result.append(hit)
        if hit:
            claimed.add(-negative)
    return result


def average_precision(hits, count, smooth=True):
    """Area under precision and recall of a class: hits by decreasing score, `count` objects."""
    points, found = [], 0
    for n, hit in enumerate(hits, start=1):
        found += hit
        points.append((found / count, found / n))
    if not smooth:
        at = [max([p for r, p in points if r >= i / 100], default=0.0) for i in range(101)]
        return sum(at) / 101
    points = [(0.0, 1.0), *points, (points[-1][0] if points else 0.0, 0.0), (1.0, 0.0)]
    points = [(r, max(p for _, p in points[i:])) for i, (r, _) in enumerate(points)]
    values = [_line(points, i / 100) for i in range(101)]
    return sum((a + b) / 200 for a, b in itertools.pairwise(values))


def _line(points, x):
    """The value at `x` of a line through points; the last one if several points are at `x`."""
    last = max(i for i, (r, _) in enumerate(points) if r <= x)
    if last == len(points) - 1:
        return points[last][1]
    (r0, p0), (r1, p1) = points[last], points[last + 1]
    return p0 + (p1 - p0) * (x - r0) / (r1 - r0)


def at_confidence(scores, values, above, x):
    """The value at confidence `x` of a line through (score, value), by decreasing score."""
    if x > scores[0]:
        return above
    for (s0, v0), (s1, v1) in itertools.pairwise(zip(scores, values, strict=True)):
        if s1 <= x <= s0:
            return v1 + (v0 - v1) * (x - s1) / (s0 - s1)
    return values[-1]


def best_f1(classes):
    """Confidence, precisions and recalls where the mean F1 over classes is best.

    A class is its scores, falling, its hits, and how many objects it has.
    """
    curves = []
    for scores, hits, count in classes:
        found = [sum(hits[: n + 1]) for n in range(len(hits))]
        recall, precision = [f / count for f in found], [f / (n + 1) for n, f in enumerate(found)]
        xs = [i / 999 for i in range(1000)]
        curves.append(
            [
                (at_confidence(scores, precision, 1.0, x), at_confidence(scores, recall, 0.0, x))
                for x in xs
            ]
        )
    mean = [
        sum(2 * p * r / (p + r + 1e-16) for p, r in at) / len(curves)
        for at in zip(*curves, strict=True)
    ]
    smooth = [sum(mean[min(max(i + k, 0), 999)] for k in range(-50, 51)) / 101 for i in range(1000)]
    best = max(range(1000), key=lambda i: (round(smooth[i], 12), -i))
    return best / 999, [c[best][0] for c in curves], [c[best][1] for c in curves]
