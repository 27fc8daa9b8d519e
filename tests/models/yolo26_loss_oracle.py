"""Assignment and loss of the detector in float64 NumPy: one target, cell and side at a time."""

import math
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One image: outputs of a head, and objects without padding."""

    distances: np.ndarray  # [N, 4], in cells
    logits: np.ndarray  # [N, C]
    boxes: np.ndarray  # [M, 4], corners in pixels
    labels: np.ndarray  # [M]


class Decisions(NamedTuple):
    """The assignment of an image, and how close it was to a different one."""

    target: dict[int, int]  # cell -> row of its target
    score: dict[int, float]  # cell -> soft score
    gap: float  # least relative difference between a value that was chosen and one that was not


def cells(height, width):
    """Centre and stride of every cell, in pixels."""
    return [
        (((x + 0.5) * stride, (y + 0.5) * stride), stride)
        for stride in (8, 16, 32)
        for y in range(height // stride)
        for x in range(width // stride)
    ]


def ciou(a, b, alpha=None):
    """Complete IoU of two boxes and its `alpha`, which may be given."""
    wa, ha = a[2] - a[0], a[3] - a[1] + 1e-7
    wb, hb = b[2] - b[0], b[3] - b[1] + 1e-7
    dx = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    dy = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    iou = dx * dy / (wa * ha + wb * hb - dx * dy + 1e-7)
    cw, ch = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    rho2 = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    v = 4 / math.pi**2 * (math.atan(wb / hb) - math.atan(wa / ha)) ** 2
    alpha = v / (1 - iou + v + 1e-7) if alpha is None else alpha
    return iou - rho2 / (cw**2 + ch**2 + 1e-7) - alpha * v, alpha


def predicted(distances, grid):
    """Corners in pixels of every cell's box."""
    return [
        (x - l * s, y - t * s, x + r * s, y + b * s)
        for (l, t, r, b), ((x, y), s) in zip(np.asarray(distances, float), grid, strict=True)
    ]


def assign(case, size, *, candidates, single, small=16.0):
    """Task-aligned assignment of one image."""
    grid = cells(*size)
    boxes = predicted(case.distances, grid)
    probabilities = 1 / (1 + np.exp(-np.asarray(case.logits, float)))
    overlap, metric, kept, gaps = {}, {}, [], [math.inf]
    for i, (target, label) in enumerate(zip(case.boxes, case.labels, strict=True)):
        low, high = list(map(float, target[:2])), list(map(float, target[2:]))
        for axis in (0, 1):
            if high[axis] - low[axis] < small:
                middle = (low[axis] + high[axis]) / 2
                low[axis], high[axis] = middle - 8, middle + 8
        found = []
        for n, (centre, _) in enumerate(grid):
            if all(min(centre[a] - low[a], high[a] - centre[a]) > 1e-9 for a in (0, 1)):
                overlap[i, n] = max(ciou(tuple(map(float, target)), boxes[n])[0], 0.0)
                metric[i, n] = probabilities[n, label] ** 0.5 * overlap[i, n] ** 6
                found.append((-metric[i, n], n))
        found.sort()
        kept += [(i, n) for value, n in found[:candidates] if value < 0]
        gaps.append(_gap([-value for value, _ in found], candidates))
    owner = {}
    for n in {n for _, n in kept}:
        rows = [i for i, cell in kept if cell == n]
        if len(rows) > 1:
            every = {i: overlap.get((i, n), 0.0) for i in range(len(case.boxes))}
            rows = sorted(every, key=lambda i: (-every[i], i))
            gaps.append(_gap(sorted(every.values(), reverse=True), 1))
        owner[n] = rows[0]
    score = {}
    for i in range(len(case.boxes)):
        mine = [n for n in owner if owner[n] == i]
        if single and mine:
            mine.sort(key=lambda n: -metric[i, n])
            gaps.append(_gap([metric[i, n] for n in mine], 1))
            mine = mine[:1]
        if mine:
            best, most = max(overlap[i, n] for n in mine), max(metric[i, n] for n in mine)
            score |= {n: metric[i, n] * best / (most + 1e-9) for n in mine}
    return Decisions({n: owner[n] for n in score}, score, min(gaps))


def terms(cases, size, decisions, alphas=None):
    """Box, class and L1 term of a batch, and the `alpha` of every foreground cell."""
    height, width = size
    grid = cells(*size)
    z = divisor(decisions)
    box = cls = l1 = 0.0
    found = {}
    for number, (case, chosen) in enumerate(zip(cases, decisions, strict=True)):
        boxes = predicted(case.distances, grid)
        expected = np.zeros(case.logits.shape)
        for n, t in chosen.score.items():
            i, stride = chosen.target[n], grid[n][1]
            expected[n, case.labels[i]] = t
            ours, goal = np.array(boxes[n]), np.asarray(case.boxes[i], float)
            key = number, n
            value, found[key] = ciou(goal / stride, ours / stride, alphas and alphas[key])
            box += t * (1 - value)
            l1 += t * np.mean(np.abs(ours - goal) / [width, height, width, height])
        logits = np.asarray(case.logits, float)
        cls += np.sum(np.logaddexp(0, logits) - logits * expected)
    return np.array([box / z, cls / z, l1 / z]), found


def divisor(decisions):
    """The divisor of the sums over a batch."""
    return max(sum(sum(chosen.score.values()) for chosen in decisions), 1.0)


def _gap(values, chosen):
    """Relative difference between the last chosen value and the next one; zeros do not count."""
    if len(values) <= chosen or values[chosen - 1] == 0:
        return math.inf
    return 1 - values[chosen] / values[chosen - 1]
