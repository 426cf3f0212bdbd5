"""What a compiled program costs, read off the program itself."""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.stages import Compiled

# The ways in which devices exchange arrays. One that runs beside other work is written in two
# parts, of which "-start" has the arguments.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Exchange:
    """All collectives of one kind in a program.

    Attributes:
        count: How many there are.
        bytes: What one device puts into them.
    """

    count: int
    bytes: int

    def __add__(self, other: "Exchange") -> "Exchange":
        return Exchange(self.count + other.count, self.bytes + other.bytes)


@dataclass(frozen=True)
class ProgramCost:
    """What one run of a program costs each device that takes part.

    Attributes:
        traffic: Bytes that its instructions read and write. A loop, such as one over blocks of
            images, reads and writes what it carries once: what it holds in between fits a cache.
        memory: Bytes held at the peak: arguments, results and what lies between.
        operations: Floating-point operations; of those in loops, the matrix products.
        collectives: Exchanges between devices, by kind.
        seconds: The compiler's estimate of the run on one device; None where it makes none.
    """

    traffic: int
    memory: int
    operations: int
    collectives: dict[str, Exchange]
    seconds: float | None

    @property
    def exchanges(self) -> Exchange:
        """All collectives together."""
        return sum(self.collectives.values(), start=Exchange(0, 0))


def read(compiled: Compiled) -> ProgramCost:
    """Reads the cost of a compiled program.

    Args:
        compiled: What `jax.jit(f).lower(...).compile()` returned, for any device.
    """
    text = compiled.as_text() or ""
    analysis: Any = compiled.cost_analysis() or {}
    memory: Any = compiled.memory_analysis()
    carried, products = _loops(text)
    seconds = analysis.get("optimal_seconds", 0.0)
    return ProgramCost(
        traffic=round(analysis.get("bytes accessed", 0)) + carried,
        memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        operations=round(analysis.get("flops", 0)) + products,
        collectives=collectives(text),
        # The sum of estimates by instruction, with -1 for one that has none.
        seconds=seconds if seconds > 0 else None,
    )


def collectives(text: str) -> dict[str, Exchange]:
    """Counts the collectives of a program, by kind.

    Args:
        text: The optimized program as XLA writes it.
    """
    found: dict[str, Exchange] = {}
    for instructions in _computations(text).values():
        sizes = {it.name: it.bytes for it in instructions}
        for it in instructions:
            kind = it.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                put_in = sum(sizes.get(operand, 0) for operand in it.operands)
                found[kind] = found.get(kind, Exchange(0, 0)) + Exchange(1, put_in)
    return dict(sorted(found.items()))


def _loops(text: str) -> tuple[int, int]:
    """What the compiler's analysis leaves out, which goes through each loop once.

    Returns:
        The bytes that loops carry, and the operations of their matrix products after the first
        time round.
    """
    computations = _computations(text)
    carried = products = 0
    pending = [("ENTRY", 1)]
    while pending:
        name, times = pending.pop()
        instructions = computations.get(name, [])
        shapes = {it.name: it.shapes for it in instructions}
        for it in instructions:
            inside = times
            if it.operation == "while":
                # Within a loop an inner one works on what the outer one holds.
                carried += it.bytes if times == 1 else 0
                rounds = _ROUNDS.search(it.attributes)
                inside *= int(rounds[1]) if rounds else 1
            elif it.operation == "dot" and times > 1:
                axes = [int(axis) for axis in _CONTRACTED.search(it.attributes)[1].split(",")]  # pyright: ignore[reportOptionalSubscript]
                contracted = math.prod(shapes[it.operands[0]][0].sizes[axis] for axis in axes)
                result = math.prod(it.shapes[0].sizes)
                products += 2 * result * contracted * (times - 1)
            called = _CALLED.findall(it.attributes)
            pending += [(other, inside) for other in called]
    return carried, products


class _Shape(NamedTuple):
    sizes: tuple[int, ...]
    bytes: int


class _Instruction(NamedTuple):
    name: str
    operation: str
    shapes: list[_Shape]
    operands: list[str]
    attributes: str

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARGUMENTS_END = re.compile(r"\)(?:, |$)")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,<=]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.\-]+)")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]+)\}")


def _computations(text: str) -> dict[str, list[_Instruction]]:
    """The instructions of each computation; the one that is run is called ENTRY."""
    found: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = found.setdefault("ENTRY" if start[1] else start[2], [])
        elif instruction := _INSTRUCTION.match(line):
            name, shape, operation, rest = instruction.groups()
            arguments, attributes, *_ = *_ARGUMENTS_END.split(rest, maxsplit=1), ""
            operands = re.findall(r"%([\w.\-]+)", arguments)
            current.append(_Instruction(name, operation, _shapes(shape), operands, attributes))
    return found


def _shapes(text: str) -> list[_Shape]:
    """The arrays of a shape, be it one array or a tuple of some; tokens and the like have none."""
    found: list[_Shape] = []
    for kind, bits, dimensions in _ARRAY.findall(text):
        if bits or kind == "pred":
            sizes = tuple(int(size.removeprefix("<=")) for size in dimensions.split(",") if size)
            found.append(_Shape(sizes, math.prod(sizes) * int(bits or 8) // 8))
    return found
