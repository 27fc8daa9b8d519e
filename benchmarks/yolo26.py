"""The matrices of a YOLO26 detector, as shapes."""

import math
from collections.abc import Callable

from benchmarks.workloads import Shapes

Kernel = tuple[int, int, int, int]
Kernels = list[Kernel]

# Width factor, largest nominal width, and whether every inner block is a "C3k".
SCALES = {"n": (0.25, 1024, False), "s": (0.5, 1024, False), "m": (1.0, 512, True)}


def yolo26(scale: str = "m", classes: int = 20) -> Shapes:
    """Convolution kernels `[height, width, in, out]`, without the depthwise ones."""
    factor, most, deep = SCALES[scale]
    c64, c128, c256, c512, c1024 = (
        8 * math.ceil(min(c, most) * factor / 8) for c in (64, 128, 256, 512, 1024)
    )
    plain = _c3k if deep else _bottleneck
    kernels = [
        *(_conv(3, 3, c64) + _conv(3, c64, c128)),
        *(_c3k2(c128, c256, 0.25, plain) + _conv(3, c256, c256)),
        *(_c3k2(c256, c512, 0.25, plain) + _conv(3, c512, c512)),
        *(_c3k2(c512, c512, 0.5, _c3k) + _conv(3, c512, c1024)),
        *_c3k2(c1024, c1024, 0.5, _c3k),
        *(_conv(1, c1024, c1024 // 2) + _conv(1, 2 * c1024, c1024)),  # pyramid pooling
        *(_conv(1, c1024, c1024) + _attention(c1024 // 2) + _conv(1, c1024, c1024)),
        *_c3k2(c1024 + c512, c512, 0.5, _c3k),
        *(_c3k2(c512 + c512, c256, 0.5, _c3k) + _conv(3, c256, c256)),
        *(_c3k2(c256 + c512, c512, 0.5, _c3k) + _conv(3, c512, c512)),
        *_c3k2(c512 + c1024, c1024, 0.5, lambda c: _bottleneck(c) + _attention(c)),
        *2 * _heads((c256, c512, c1024), classes),  # one-to-many and one-to-one
    ]
    return {f"conv_{i:03d}": kernel for i, kernel in enumerate(kernels)}


def _conv(size: int, inputs: int, outputs: int) -> Kernels:
    return [(size, size, inputs, outputs)]


def _bottleneck(c: int, inner: int | None = None) -> Kernels:
    inner = inner or c // 2
    return _conv(3, c, inner) + _conv(3, inner, c)


def _c3k(c: int) -> Kernels:
    half = c // 2
    return 2 * _conv(1, c, half) + 2 * _bottleneck(half, half) + _conv(1, 2 * half, c)


def _attention(c: int) -> Kernels:
    keys = c // max(c // 64, 1) // 2 * max(c // 64, 1)
    return _conv(1, c, c + 2 * keys) + _conv(1, c, c) + _conv(1, c, 2 * c) + _conv(1, 2 * c, c)


def _c3k2(inputs: int, outputs: int, share: float, inner: Callable[[int], Kernels]) -> Kernels:
    c = int(outputs * share)
    return _conv(1, inputs, 2 * c) + inner(c) + _conv(1, 3 * c, outputs)


def _heads(levels: tuple[int, ...], classes: int) -> Kernels:
    box, kind = max(16, levels[0] // 4), max(levels[0], min(classes, 100))
    kernels: Kernels = []
    for c in levels:
        kernels += _conv(3, c, box) + _conv(3, box, box) + _conv(1, box, 4)
        kernels += _conv(1, c, kind) + _conv(1, kind, kind) + _conv(1, kind, classes)
    return kernels
