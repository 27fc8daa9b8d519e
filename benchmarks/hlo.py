"""What a compiled program does each time it runs, read from its HLO text.

A loop body counts as often as it runs; of a conditional's branches the most expensive one counts.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_PRODUCTS = ("dot", "convolution")  # the compiler for TPUs writes all products as convolutions
_NOT_KERNELS = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")
_BITS = {"pred": 8, "bf16": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<code>[\w\-]+)\((?P<rest>.*)$"
)
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")


@dataclass
class Work:
    """What one device does in one run of the program."""

    collectives: Counter[str] = field(default_factory=Counter)
    received: float = 0.0  # bytes that come out of collectives, the device's own share included
    carried: Counter[str] = field(default_factory=Counter)  # of these, by dtype
    products: int = 0  # matrix products executed
    operands: Counter[str] = field(default_factory=Counter)  # of these, by dtype
    flops: float = 0.0  # of the matrix products alone: 2 m n k each
    looped: int = 0  # collectives inside a loop

    def add(self, other: "Work", times: int = 1) -> None:
        """Adds the work of `times` runs of another computation."""
        for kind, count in other.collectives.items():
            self.collectives[kind] += times * count
        self.received += times * other.received
        for dtype, count in other.carried.items():
            self.carried[dtype] += times * count
        self.products += times * other.products
        for dtype, count in other.operands.items():
            self.operands[dtype] += times * count
        self.flops += times * other.flops
        self.looped += times * other.looped


def work(text: str) -> Work:
    """Counts the work in `compiled.as_text()`.

    Raises:
        ValueError: there is no entry computation, or a loop whose body counts has no known number
            of iterations.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return _of(entry, computations, {})


def written_products(text: str) -> int:
    """How many matrix products `compiled.as_text()` contains; one in a loop counts once."""
    computations, _ = _computations(text)
    return sum(i["code"] in _PRODUCTS for of in computations.values() for i in of)


def traffic(text: str) -> float:
    """Bytes that the kernels of a program for a GPU read and write: each operand, each result.

    A kernel that reads an operand more than once is supposed to find it in the cache.
    """
    computations, entry = _computations(text)
    types = {i["name"]: i["type"] for i in computations[entry or ""]}
    total = 0.0
    for i in computations[entry or ""]:
        if i["code"] not in _NOT_KERNELS:
            listed = re.findall(r"%([\w.\-]+)", i["rest"].split("), ")[0])
            total += _bytes(i["type"]) + sum(_bytes(types[x]) for x in set(listed) if x in types)
    return total


def _computations(text: str) -> tuple[dict[str, list[re.Match]], str | None]:
    """The instructions of every computation, and the name of the entry computation."""
    computations: dict[str, list[re.Match]] = {}
    entry, current = None, []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            current.append(instruction)
    return computations, entry


def _of(name: str, computations: dict[str, list[re.Match]], known: dict[str, Work]) -> Work:
    """The work of one run of a computation."""
    if name in known:
        return known[name]
    total = known[name] = Work()
    types = {i["name"]: i["type"] for i in computations[name]}
    for instruction in computations[name]:
        code, rest = instruction["code"], instruction["rest"]
        kind = code.removesuffix("-done")
        if kind in COLLECTIVES:  # "-start" has operands among its results
            total.collectives[kind] += 1
            total.received += _bytes(instruction["type"])
            for dtype, sizes in _arrays(instruction["type"]):
                total.carried[dtype] += _width(dtype) * math.prod(sizes) // 8
        elif code in _PRODUCTS:
            dtype, depth = _operand(rest, types)
            total.products += 1
            total.operands[dtype] += 1
            shapes = [sizes for _, sizes in _arrays(instruction["type"])]
            total.flops += 2.0 * depth * sum(map(math.prod, shapes))
        elif code == "conditional":
            branches = [_of(n, computations, known) for n in _branches(rest)]
            total.add(max(branches, key=lambda b: (b.flops, b.received)))
        elif code not in ("reduce", "map", "sort", "scatter", "select-and-scatter"):
            for called in _CALLED.findall(rest):
                inner = _of(called, computations, known)
                total.add(inner, _iterations(rest, inner, computations) if code == "while" else 1)
                if code == "while":
                    total.looped += sum(inner.collectives.values())
    return total


def _branches(rest: str) -> list[str]:
    """Names of a conditional's branches."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
    return re.findall(r"[\w.\-]+", listed[1]) if listed else _CALLED.findall(rest)


def _iterations(rest: str, inner: Work, computations: dict[str, list[re.Match]]) -> int:
    """How many iterations a loop runs; 1 if unknown and the body does nothing that counts."""
    count = re.search(r"known_trip_count\D*(\d+)", rest)
    if count is None:  # compilers for TPUs do not state it: `index < constant` in the condition
        condition = re.search(r"condition=%?([\w.\-]+)", rest)
        bounds = [
            re.match(r"(\d+)\)", i["rest"])
            for i in (computations.get(condition[1], []) if condition else [])
            if i["code"] == "constant"
        ]
        count = bounds[0] if len(bounds) == 1 else None
    if count is None and (inner.collectives or inner.products):
        raise ValueError(f"a loop without a known number of iterations: {rest[:200]}")
    return int(count[1]) if count else 1


def _operand(rest: str, types: dict[str, str]) -> tuple[str, int]:
    """The dtype of the first operand of a product, and how many entries of it each sum takes."""
    operand = re.search(r"%?([\w.\-]+)[,)]", re.sub(r"\w+\[[\d,]*\](\{[^}]*\})? ", "", rest))
    if operand is None or operand[1] not in types:
        raise ValueError(f"a product in an unknown form: {rest[:200]}")
    ((dtype, sizes),) = _arrays(types[operand[1]])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    labels = re.search(r"dim_labels=(\w+)_", rest)  # of a convolution: "f" is what is summed over
    if contracted:
        axes = [int(axis) for axis in contracted[1].split(",") if axis]
    elif labels:
        axes = [labels[1].index("f")]
    else:
        raise ValueError(f"a product in an unknown form: {rest[:200]}")
    return dtype, math.prod(sizes[axis] for axis in axes)


def _bytes(type_: str) -> float:
    """Size of an array, or of all arrays of a tuple."""
    return sum(_width(dtype) * math.prod(sizes) / 8 for dtype, sizes in _arrays(type_))


def _arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    """`"(f32[2,3]{1,0}, u8[])"` -> `[("f32", (2, 3)), ("u8", ())]`."""
    found = re.findall(r"([a-z]\w*)\[([\d,]*)\]", type_)
    return [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in found]


def _width(dtype: str) -> int:
    """Bits of one element; `f8e4m3fn` and `u16` have the number in their names."""
    return _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
