"""What a compiled program moves: collectives by kind, bytes to and from memory, saved activations.

The compiler's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

from fmjax.plan.hlo import Array, Computation, Instruction, Module

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# Neither compute nor move: names for what is there, and ends of what began before.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "add-dependency",
    "optimization-barrier",
    "partition-id",
    "replica-id",
    "async-update",
}
_NO_WORK = ("AllocateBuffer", "AssumeGatherIndicesInBound")
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Tally:
    """What a program moves in one run, on each device.

    Attributes:
      collectives: bytes received from other devices, by kind. Of n devices, an all-gather of x
        bytes each brings (n − 1) · x; a reduce-scatter or all-to-all of x bytes (n − 1) / n · x;
        an all-reduce both, 2 (n − 1) / n · x; a permutation x.
      traffic: bytes read from and written to the device's memory (HBM) by the instructions, each
        reading its operands and writing its results once. On-chip memory does not count; of a
        slice or an update in place only the part that is touched does.
      unknown: loops whose length could not be told; they count once.
    """

    collectives: Mapping[str, int]
    traffic: int
    unknown: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        both = collections.Counter(self.collectives)
        both.update(other.collectives)
        return Tally(both, self.traffic + other.traffic, self.unknown + other.unknown)

    def __mul__(self, times: int) -> "Tally":
        kinds = {kind: n * times for kind, n in self.collectives.items()}
        return Tally(kinds, self.traffic * times, self.unknown)


NOTHING = Tally({}, 0)


def tally(module: Module) -> Tally:
    """What one run of the program moves; a branch counts as the one that moves more."""
    return _Walk(module).of(module.entry)


def saved_activations(module: Module, length: int | None = None) -> int:
    """Bytes on a device of what the forward pass of scanned layers saves for the backward pass.

    They are the arrays that a loop of the forward pass (traced under `jvp` and not `transpose`)
    fills, one row a round, in the device's memory.

    Args:
      module: of a training step.
      length: of the loops that count; None takes all of a known length.
    """
    total = 0
    for _, loop, rounds in module.loops():
        name = loop.op_name
        if "jvp(" not in name or "transpose(" in name or "checkpoint" in name:
            continue
        if rounds in (None, 0, 1) or length not in (None, rounds):
            continue
        body = module.computations[loop.called("body")[0]]
        if body.root.opcode != "tuple" or not name.endswith("while"):
            continue
        for i, result in enumerate(body.root.operands):
            source = body.instructions[result]
            passed = source.opcode == "get-tuple-element" and f"index={i}," in (
                source.attributes + ","
            )
            array = source.arrays[0] if len(source.arrays) == 1 else None
            if not passed and array and array.shape[:1] == (rounds,) and array.space == 0:
                total += array.nbytes
    return total


class _Walk:
    def __init__(self, module: Module) -> None:
        self.module, self.done = module, {}

    def of(self, name: str, fused: bool = False) -> Tally:
        """Of one run of a computation; inside a fusion nothing but collectives counts."""
        if (name, fused) not in self.done:
            where = self.module.computations[name]
            total = NOTHING
            for instruction in where.instructions.values():
                total = total + self._one(where, instruction, fused)
            self.done[name, fused] = total
        return self.done[name, fused]

    def _one(self, where: Computation, instruction: Instruction, fused: bool) -> Tally:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return NOTHING
        if opcode == "while":
            length = self.module.length(where, instruction)
            body = self.of(instruction.called("body")[0], fused)
            return body * length if length is not None else body + Tally({}, 0, 1)
        if opcode == "conditional":
            keys = ("branch_computations", "true_computation", "false_computation")
            branches = [self.of(name, fused) for name in instruction.called(*keys)]
            return max(branches, key=lambda t: (t.traffic, sum(t.collectives.values())))
        if opcode in ("call", "async-start"):
            inner = [self.of(name, fused) for name in instruction.called("to_apply", "calls")]
            return sum(inner, NOTHING)
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return self._collective(where, instruction, kind, fused)
        if opcode == "fusion":
            inner = self.of(instruction.called("calls")[0], fused=True)
            moved = 0 if fused else self._fusion(where, instruction)
            return Tally(_scattered(instruction, inner.collectives), moved, inner.unknown)
        if fused or (
            opcode == "custom-call" and any(t in instruction.attributes for t in _NO_WORK)
        ):
            return NOTHING
        return Tally({}, self._plain(where, instruction))

    def _collective(
        self, where: Computation, instruction: Instruction, kind: str, fused: bool
    ) -> Tally:
        operands = where.types(instruction)
        if kind == "collective-permute":
            operands = operands[:1]
        size = sum(array.nbytes for operand in operands for array in operand)
        n = group_size(instruction.attributes, self.module.partitions)
        received = {
            "all-gather": size * (n - 1),
            "all-reduce": 2 * size * (n - 1) // n,
            "collective-permute": size,
            "collective-broadcast": size,
        }.get(kind, size * (n - 1) // n)
        return Tally({kind: received}, 0 if fused else size + received)

    def _plain(self, where: Computation, instruction: Instruction) -> int:
        operands, opcode = where.types(instruction), instruction.opcode
        result = _hbm(instruction.arrays)
        if opcode in _SLICES:
            return 2 * result
        if opcode == "dynamic-update-slice":
            return 2 * _hbm(operands[1])
        if opcode == "copy-start":
            return _hbm(instruction.arrays[:1]) + _hbm(operands[0])
        return result + sum(map(_hbm, operands))

    def _fusion(self, where: Computation, instruction: Instruction) -> int:
        body = self.module.computations[instruction.called("calls")[0]]
        moved = 0
        for i, operand in enumerate(where.types(instruction)):
            read = self._read(body, body.parameters[i]) if i in body.parameters else None
            whole = _hbm(operand)
            moved += whole if read is None else min(whole, read)
        return moved + self._written(body, instruction)

    def _read(self, body: Computation, source: Instruction) -> int | None:
        """Bytes that a fusion reads of one of its values; None is all of it."""
        total = 0
        for user in body.users.get(source.name, []):
            first = user.operands[0] == source.name
            if user.opcode in _SLICES and first:
                total += sum(array.nbytes for array in user.arrays)
            elif user.opcode == "dynamic-update-slice" and first:
                continue
            elif user.opcode == "bitcast":
                part = self._read(body, user)
                if part is None:
                    return None
                total += part
            elif user.opcode == "fusion":
                inner = self.module.computations[user.called("calls")[0]]
                part = self._read(inner, inner.parameters[user.operands.index(source.name)])
                if part is None:
                    return None
                total += part
            else:
                return None
        return total

    def _written(self, body: Computation, instruction: Instruction) -> int:
        root = body.root
        roots = (
            [body.instructions[name] for name in root.operands]
            if root.opcode == "tuple"
            else [root]
        )
        results = instruction.arrays
        if len(roots) != len(results):
            return _hbm(results)
        total = 0
        for source, result in zip(roots, results, strict=True):
            while source.opcode == "bitcast":
                source = body.instructions[source.operands[0]]
            if source.opcode == "dynamic-update-slice" and result.space == 0:
                update = body.instructions[source.operands[1]].arrays
                total += sum(array.nbytes for array in update)
            else:
                total += _hbm([result])
        return total


def _hbm(found: list[Array]) -> int:
    return sum(array.nbytes for array in found if array.space == 0)


def _scattered(instruction: Instruction, inner: Mapping[str, int]) -> Mapping[str, int]:
    """TPUs reduce and scatter in a fusion of an all-reduce with the slice that is kept."""
    name = " ".join([instruction.name, *instruction.called("calls")])
    if "all-reduce-scatter" not in name and "reduce-scatter" not in name:
        return inner
    moved = dict(inner)
    reduced = moved.pop("all-reduce", 0)
    if reduced:
        moved["reduce-scatter"] = moved.get("reduce-scatter", 0) + reduced // 2
    return moved


def group_size(attributes: str, partitions: int) -> int:
    """Devices that take part in one group of a collective.

    Groups are written {{0,1},{2,3}}, [2,4]<=[8] (2 groups of 4), or as axes of a mesh,
    mesh['a'=2,'b'=4] {'b'}; none stands for one group of all.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(2))
    axes = re.search(r"replica_groups=@?mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if axes:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes.group(1))}
        n = 1
        for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes.group(2)):
            n *= int(part) if part else sizes[name]
        return n
    return partitions
