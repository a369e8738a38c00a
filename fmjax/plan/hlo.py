"""Compiled HLO text, parsed: computations, instructions, types and the lengths of loops.

The text is what XLA prints after optimisation, of which only what does not depend on the backend is
read: types, opcodes, operands, called computations, metadata.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type.

    Attributes:
      shape: its dimensions.
      nbytes: of its elements, without the padding of its layout.
      space: memory space; 0 is the device's main memory (HBM), 5 the host's, others are on chip.
    """

    shape: tuple[int, ...]
    nbytes: int
    space: int


def arrays(type_: str) -> list[Array]:
    """The arrays of a type, those of a tuple in order."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(type_):
        shape = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        bits = re.search(r"\d+", dtype)
        width = int(bits.group()) if bits else (8 if dtype == "pred" else 0)
        space = _SPACE.search(layout)
        size = -(-math.prod(shape) * width // 8)
        found.append(Array(shape, size, int(space.group(1)) if space else 0))
    return found


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Of its result."""
        return arrays(self.type)

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under attributes such as "body" or "calls"."""
        names: list[str] = []
        for key in keys:
            found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            names += re.findall(r"%?([\w.\-]+)", found.group(1)) if found else []
        return names

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.inside): i for i in self.instructions.values() if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions by what they read."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                users.setdefault(name, []).append(instruction)
        return users

    def types(self, instruction: Instruction) -> list[list[Array]]:
        """The arrays of each operand."""
        return [self.instructions[name].arrays for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    partitions: int

    def loops(self) -> Iterator[tuple[Computation, Instruction, int | None]]:
        """(where, the `while`, its length or None) of every loop."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "while":
                    yield computation, instruction, self.length(computation, instruction)

    def length(self, where: Computation, loop: Instruction) -> int | None:
        """How often a `while` runs: as XLA states it, or read off `i < n` and `i + k`; else None.

        JAX's loops count by one, the partitioner's by two where they go both ways round a ring.
        """
        stated = re.search(r'known_trip_count":\s*\{\s*"n":\s*"?(\d+)', loop.attributes)
        if stated:
            return int(stated.group(1))
        condition = self.computations[loop.called("condition")[0]]
        test = condition.root
        if test.opcode == "fusion" and len(test.operands) == 2:
            inner = self.computations[test.called("calls")[0]].root
            test = dataclasses.replace(inner, operands=test.operands)
        if test.opcode != "compare":
            return None
        counter, bound = test.operands
        if "direction=GT" in test.attributes:
            counter, bound = bound, counter
        elif "direction=LT" not in test.attributes:
            return None
        start = self._value(where, loop, condition, counter)
        end = self._value(where, loop, condition, bound)
        step = self._step(loop, condition.instructions[counter])
        if end is None or step is None:
            return None
        # A counter that starts at no constant is one that an outer loop resets to 0.
        return max(-(-(end - (start or 0)) // step), 0)

    def _step(self, loop: Instruction, counter: Instruction) -> int | None:
        """What a round adds to the counter of the condition; None if it is no constant."""
        body = self.computations[loop.called("body")[0]]
        index = re.search(r"index=(\d+)", counter.attributes)
        if index is None or body.root.opcode != "tuple":
            return None
        result = body.instructions[body.root.operands[int(index.group(1))]]
        while result.opcode in ("copy", "bitcast"):
            result = body.instructions[result.operands[0]]
        if result.opcode != "add":
            return None
        added = [body.instructions[name] for name in result.operands]
        steps = [int(i.inside) for i in added if re.fullmatch(r"[1-9]\d*", i.inside)]
        return steps[0] if len(steps) == 1 else None

    def _value(
        self, where: Computation, loop: Instruction, condition: Computation, name: str
    ) -> int | None:
        """An integer that the condition compares, before the first round; None if it varies."""
        source = condition.instructions[name]
        if source.opcode == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", source.attributes).group(1))
            source = where.instructions[loop.operands[0]]
            if source.opcode == "tuple":
                source = where.instructions[source.operands[index]]
        while source.opcode in ("copy", "bitcast") and source.operands[0] in where.instructions:
            source = where.instructions[source.operands[0]]
        constant = source.opcode == "constant" and re.fullmatch(r"-?\d+", source.inside)
        return int(source.inside) if constant else None


def parse(text: str) -> Module:
    """Reads the text of a module."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _logical_lines(text):
        header = _HEADER.match(line)
        if header:
            current = Computation(header.group(2), {})
            computations[current.name] = current
            entry = current.name if header.group(1) else entry
        elif line == "}":
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found.group(2), found.group(3), bool(found.group(1)))
            current.instructions[instruction.name] = instruction
    count = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(count.group(1)) if count else 1)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with those that a kernel's metadata is broken over put together."""
    held = ""
    for line in text.splitlines():
        starts = line == "}" or line[:1] in ("%", "") or line.startswith(("  ", "ENTRY "))
        if held and starts:
            yield held
            held = ""
        held = held + line if held and not starts else line
    yield held


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:]
    opcode = _OPCODE.match(rest)
    open_ = opcode.end() - 1
    close = _closing(rest, open_)
    inside = rest[open_ + 1 : close - 1]
    operands = () if opcode.group(1) in ("constant", "parameter") else _NAME.findall(inside)
    return Instruction(name, type_, opcode.group(1), tuple(operands), inside, rest[close:], root)


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return start + match.end()
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")
