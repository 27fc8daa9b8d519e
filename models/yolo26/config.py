"""The architecture of a YOLO26-style detector as data, and the five scales."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class YOLO26Config:
    """Architecture of a YOLO26-style detector.

    Attributes:
        num_classes: number of classes, C.
        depth: factor of the number of inner blocks; a stage with nominally two has
            `max(round(2 depth), 1)`.
        width: factor of the channels, see `channels`.
        max_channels: cap of the nominal channels, applied before the factor.
        nested: the two earliest stages have C3k blocks inside, like all others; False: plain
            bottlenecks.

    Raises:
        ValueError: a size that is not a positive integer, or a factor that is not a positive finite
            number.

    Example:
        >>> dataclasses.replace(scaled("n", 20), width=0.125).channels(64)
        8
    """

    num_classes: int
    depth: float
    width: float
    max_channels: int
    nested: bool

    def __post_init__(self) -> None:
        """Refuses an architecture that cannot be built."""
        for name in ("num_classes", "max_channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a size; use an integer of at least 1")
        for name in ("depth", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r} is not a number; use a finite one above 0")
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} is out of range; use a finite one above 0")
        if not isinstance(self.nested, bool):
            raise ValueError(f"nested={self.nested!r} is not a choice; use True or False")

    def channels(self, nominal: int) -> int:
        """Channels of a layer: capped, then scaled, then rounded up to a multiple of 8."""
        return 8 * math.ceil(min(nominal, self.max_channels) * self.width / 8)

    @property
    def repeats(self) -> int:
        """Number of inner blocks of a stage that has nominally two."""
        return max(round(2 * self.depth), 1)


SCALES: dict[str, tuple[float, float, int, bool]] = {  # depth, width, max_channels, nested
    "n": (0.5, 0.25, 1024, False),
    "s": (0.5, 0.50, 1024, False),
    "m": (0.5, 1.00, 512, True),
    "l": (1.0, 1.00, 512, True),
    "x": (1.0, 1.50, 512, True),
}


def scaled(scale: str, num_classes: int) -> YOLO26Config:
    """The architecture of a published scale.

    Args:
        scale: "n", "s", "m", "l" or "x": 2.6, 10.0, 21.9, 26.3 and 59.0 million parameters with 80
            classes, including both heads.
        num_classes: number of classes, at least 1.

    Raises:
        ValueError: an unknown scale, or fewer than one class.

    Example:
        >>> scaled("m", 20).channels(1024)
        512
    """
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r} is unknown; use {', '.join(map(repr, SCALES))}")
    depth, width, max_channels, nested = SCALES[scale]
    return YOLO26Config(
        num_classes=num_classes,
        depth=depth,
        width=width,
        max_channels=max_channels,
        nested=nested,
    )
