"""What a compiled program says of itself: memory, cost and traffic, for one device."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from fmv2.models.attention import most_keys
from train.hardware import Chip

# The vector unit of a TPU's core: 8 × 128 lanes of 4 ALUs.
_VECTOR_OPERATIONS_PER_CYCLE = 4096
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
    splash_calls: int
    """Pallas calls of attention: the compiler counts nothing inside them, so they are added here,
    FLOPs and bytes exactly, cycles by a model that overlaps nothing."""


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
    """By the compiler's analysis, splash attention added."""
    text, analysis = compiled.as_text(), compiled.cost_analysis()
    estimates = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    told = estimates and max(estimates) < _NO_ESTIMATE
    flops, moved, cycles, calls = analysis["flops"], analysis["bytes accessed"], sum(estimates), 0
    if chip is not None and chip.clock is not None:
        for kernel in splash_calls(text, chip):
            flops, moved = flops + kernel.flops, moved + kernel.bytes
            cycles, calls = cycles + kernel.cycles, calls + 1
    return Cost(flops, moved, cycles if told else None, calls)


class Kernel(NamedTuple):
    """One call of splash attention."""

    flops: float
    bytes: float
    cycles: float


def splash_calls(compiled_text: str, chip: Chip) -> Iterator[Kernel]:
    """What each splash attention call of a compiled program costs, by its operands' shapes.

    Forward is two products (q kᵀ, p v), backward five (q kᵀ again, dp, dv, dk, dq). On the matrix
    unit a head pads to a multiple of its side; on the vector unit the softmax of a logit takes
    about six operations forward and ten backward. Nothing is taken to overlap.
    """
    assert chip.clock is not None
    flops_per_cycle = chip.flops / chip.clock
    for line in compiled_text.splitlines():
        call = re.search(r"%(splash_mha_\w+)[.\d]* = .* custom-call\(", line)
        if not call:
            continue
        name, operands = call[1], line[line.index("operand_layout_constraints=") :]
        # The first operand of four dimensions is the queries, tokens last.
        query = re.search(r"bf16\[(\d+),(\d+),(\d+),(\d+)\]", operands)
        if query is None:
            raise ValueError(f"splash attention of unknown operands: {operands[:200]}")
        batch, heads, head_dim, tokens = map(int, query.groups())
        backward = "dkv" in name
        products, vector_operations = (5, 10) if backward else (2, 6)
        logits = batch * heads * tokens**2
        padded = chip.matrix * math.ceil(head_dim / chip.matrix)
        matrix = 2 * products * logits * padded / flops_per_cycle
        vector = vector_operations * logits / (chip.cores * _VECTOR_OPERATIONS_PER_CYCLE)
        one = 2 * batch * heads * tokens * head_dim  # bytes of q, k, v or any gradient
        # Forward: q and o once, k and v for each block of queries. Backward: k, v, dk and dv once;
        # q, o, do and a part of dq for each block of keys.
        blocks = math.ceil(tokens / (most_keys(head_dim) if backward else 1024))
        yield Kernel(
            flops=2 * products * logits * head_dim,
            bytes=one * ((4 + 4 * blocks) if backward else (2 + 2 * blocks)),
            cycles=matrix + vector,
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
