"""What a compiled program says of itself: memory, cost and traffic, for one device."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from fmv2.models.flash import BACKWARD, FORWARD
from train.hardware import Chip

_NO_ESTIMATE = 2**63 - 1
"""What the compiler writes where it cannot tell."""
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{n}": n for kind in "fsu" for n in (8, 16, 32, 64)}


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int
    """State, frozen weights and batch."""
    outputs: int
    """Those that do not reuse a donated argument."""
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)


class Cost(NamedTuple):
    """One run of the program on one device."""

    flops: float
    bytes: float
    """Read and written."""
    cycles: float | None
    """By the TPU compiler's own estimate; None on other devices, and where it has none of some
    operation."""
    flash_calls: int
    """Pallas calls of attention: the compiler counts nothing inside them, so they are added here,
    FLOPs and bytes exactly, cycles by the schedules of the kernels."""


def memory(compiled: Any) -> Memory:
    """By the compiler's analysis."""
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )


def cost(compiled: Any, chip: Chip | None) -> Cost:
    """By the compiler's analysis, flash attention added."""
    text, analysis = compiled.as_text(), compiled.cost_analysis()
    estimates = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    told = estimates and max(estimates) < _NO_ESTIMATE
    flops, moved, cycles, calls = analysis["flops"], analysis["bytes accessed"], sum(estimates), 0
    if chip is not None and chip.clock is not None:
        for kernel in flash_calls(text, chip):
            flops, moved = flops + kernel.flops, moved + kernel.bytes
            cycles, calls = cycles + kernel.cycles, calls + 1
    return Cost(flops, moved, cycles if told else None, calls)


class Kernel(NamedTuple):
    """One call of flash attention."""

    flops: float
    bytes: float
    cycles: float


# A core's for one block of 512 queries, by the chip and the channels of a head: forward over 128
# keys and over 1024, then backward; benchmarks/tpu_attention.py reads them off the schedules.
_FLASH_CYCLES = {
    "v4": {
        40: (556, 2818, 897, 4659),
        64: (594, 2921, 1009, 5422),
        80: (616, 3047, 1074, 5557),
        128: (718, 3352, 1306, 6848),
        160: (854, 4110, 1599, 8858),
        256: (997, 4921, 2122, 11737),
    },
    "v5e": {
        40: (314, 1740, 632, 3275),
        64: (365, 1906, 700, 3629),
        80: (394, 1998, 775, 4092),
        128: (469, 2425, 915, 5028),
        160: (667, 3252, 1296, 7689),
        256: (781, 4268, 1484, 10623),
    },
    "v5p": {
        40: (445, 1807, 830, 3511),
        64: (475, 1963, 888, 3774),
        80: (497, 2104, 972, 4112),
        128: (540, 2489, 1098, 5332),
        160: (757, 3453, 1395, 8057),
        256: (833, 4292, 1751, 10111),
    },
    "v6e": {
        40: (318, 1390, 535, 2235),
        64: (351, 1447, 604, 2512),
        80: (363, 1461, 652, 2618),
        128: (410, 1538, 801, 2991),
        160: (447, 1704, 835, 3334),
        256: (550, 1934, 1089, 4106),
    },
}


def flash_calls(compiled_text: str, chip: Chip) -> Iterator[Kernel]:
    """What each flash attention call of a compiled program costs, by its operands' shapes.

    Forward is two products (q kᵀ, p v), backward five (q kᵀ again, dp, dv, dk, dq). Of heads with
    another number of channels than the schedules are known for, the cycles of the next that they
    are; of other numbers of keys, on the line through the two.
    """
    for line in compiled_text.splitlines():
        call = re.search(rf"%\S*({FORWARD}|{BACKWARD})\S* = .* custom-call\(", line)
        if not call:
            continue
        operands = line[line.index("operand_layout_constraints=") :]
        shapes = re.findall(r"(?:bf16|f32)\[(\d+),(\d+),(\d+),(\d+)\]", operands)
        (batch, heads, head_dim, queries), (*_, keys) = (map(int, shape) for shape in shapes[:2])
        backward = call[1] == BACKWARD
        products, arrays = (5, 4) if backward else (2, 2)  # of queries' size, and of keys'
        cycles = _FLASH_CYCLES[chip.name]
        least, most = cycles[next(n for n in cycles if n >= head_dim)][2 * backward :][:2]
        one = least + (most - least) * (keys - 128) / (1024 - 128)
        yield Kernel(
            flops=2 * products * batch * heads * queries * keys * head_dim,
            bytes=2 * arrays * batch * heads * (queries + keys) * head_dim,
            cycles=batch * heads * queries / 512 * one / chip.cores,
        )


def collectives(compiled_text: str) -> dict[str, tuple[int, int]]:
    """Number and bytes of each kind of collective, by the size of what it gives."""
    count, size = Counter(), Counter()
    pattern = rf"= (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\("
    for line in compiled_text.splitlines():
        if found := re.search(pattern, line):
            count[found[2]] += 1
            size[found[2]] += _bytes(_result(found[1]) if found[3] else found[1])
    return {kind: (count[kind], size[kind]) for kind in count}


def _result(started: str) -> str:
    """What a started collective will give, of the shapes that it has: (operand, result, …)."""
    if found := re.match(r"\(\((.*?)\), \((.*?)\)", started):
        return found[2]
    shapes = re.findall(r"[a-z]+\d*\[[\d,]*\]", started)
    return shapes[1] if len(shapes) > 1 else started


def _bytes(shapes: str) -> int:
    return sum(
        _BITS[dtype] // 8 * math.prod(int(n) for n in sides.split(",") if n)
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
        if dtype in _BITS
    )
