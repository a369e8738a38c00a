"""What a plan says, as fields, as JSON and as text."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax.plan.chips import GIB


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip; their sum is `Plan.hbm_bytes_per_device`.

    Attributes:
      weights: parameters and adapter, as they are laid out.
      optimizer: its state, as far as it is not kept in host memory.
      activations: what the forward pass of scanned layers saves for the backward pass; in
        decoding, the cache of keys and values.
      temporaries: the rest: gradients, gathered weights, logits, the batch, padding of layouts.
    """

    weights: int
    optimizer: int
    activations: int
    temporaries: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step takes on each chip. All bytes and FLOPs are of one chip and one step.

    A figure is None where the compiler gave none, because the program does not fit.

    Attributes:
      topology: as it was asked for.
      chip: its kind.
      devices: chips.
      mesh: sizes of the mesh axes that are larger than 1.
      settings: what was planned: model, method, batch and the like.
      hbm_bytes_per_device: arguments + temporaries + outputs − aliases.
      hbm_limit_bytes: what a program can use of a chip's memory.
      fits: whether the compiler finds room for it.
      memory: the same bytes by what they hold.
      argument_bytes, temp_bytes, output_bytes, alias_bytes: of the compiler's memory analysis.
      host_bytes: arguments and temporaries in the host's memory, for offloaded state.
      flops_per_device: that the program spends on matrix products, recomputation included.
      int8_flops_per_device: those of them whose operands are int8.
      model_flops_per_device: that the model needs, see `fmjax.train.flops`.
      hbm_traffic_bytes_per_device: read from and written to the chip's memory.
      collective_bytes: that a chip receives over the interconnect, by kind of collective.
      seconds: of each term of the roofline by itself: matmul, hbm, interconnect.
      estimated_step_seconds: the longest of them: all three overlap. A bound, not a promise.
      bound_by: which one that is.
      model_flops_utilisation: model FLOPs / (estimated time × bf16 peak).
      tokens_per_second: of all chips together, at the estimated time.
      compile_seconds: that tracing and compiling took here.
      advice: what to change, if it does not fit.
      notes: what the figures leave out.
    """

    topology: str
    chip: str
    devices: int
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    hbm_bytes_per_device: int
    hbm_limit_bytes: int
    fits: bool
    memory: Memory | None
    argument_bytes: int | None
    temp_bytes: int | None
    output_bytes: int | None
    alias_bytes: int | None
    host_bytes: int
    flops_per_device: float
    model_flops_per_device: float
    hbm_traffic_bytes_per_device: int | None
    collective_bytes: Mapping[str, int] | None
    seconds: Mapping[str, float] | None
    estimated_step_seconds: float | None
    bound_by: str | None
    model_flops_utilisation: float | None
    tokens_per_second: float | None
    compile_seconds: float
    int8_flops_per_device: float = 0.0
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All fields, sizes in bytes and times in seconds."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        lines = [self._head(), *self._memory()]
        if self.seconds is not None:
            lines += [*self._traffic(), *self._time()]
        lines.append(f"compiled in {self.compile_seconds:.0f} s")
        lines += [f"note: {note}" for note in self.notes]
        if not self.fits:
            lines += ["what to change:", *(f"  {line}" for line in self.advice)]
        return "\n".join(lines)

    def _head(self) -> str:
        axes = " × ".join(f"{axis} {n}" for axis, n in self.mesh.items()) or "one device"
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value != "")
        return f"{self.topology}: {self.devices} × {self.chip}, {axes}; {said}"

    def _memory(self) -> list[str]:
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines = [
            f"memory        {gib(self.hbm_bytes_per_device)} of {gib(self.hbm_limit_bytes)} a chip "
            f"({self.hbm_bytes_per_device:,} bytes): {verdict}"
        ]
        if self.memory is not None:
            parts = dataclasses.asdict(self.memory)
            lines.append("  " + ", ".join(f"{name} {gib(n)}" for name, n in parts.items()))
        if self.argument_bytes is not None:
            lines.append(
                f"  arguments {gib(self.argument_bytes)} + temporaries {gib(self.temp_bytes)} + "
                f"outputs {gib(self.output_bytes)} − aliases {gib(self.alias_bytes)}"
            )
        if self.host_bytes:
            lines.append(f"  in host memory {gib(self.host_bytes)}")
        return lines

    def _traffic(self) -> list[str]:
        kinds = ", ".join(f"{kind} {gib(n)}" for kind, n in self.collective_bytes.items())
        int8 = self.int8_flops_per_device / 1e12
        return [
            f"matmul        {self.flops_per_device / 1e12:,.4g} TFLOP "
            + (f"({int8:,.4g} of them int8) " if int8 else "")
            + f"(the model needs {self.model_flops_per_device / 1e12:,.4g})",
            f"HBM traffic   {gib(self.hbm_traffic_bytes_per_device)}",
            f"interconnect  {kinds or 'nothing'}",
        ]

    def _time(self) -> list[str]:
        terms = ", ".join(f"{name} {seconds(s)}" for name, s in self.seconds.items())
        return [
            f"step          {seconds(self.estimated_step_seconds)} or more, bound by "
            f"{self.bound_by} ({terms})",
            f"utilisation   {self.model_flops_utilisation:.1%} of the peak (MFU), "
            f"{self.tokens_per_second:,.0f} tokens/s, "
            f"{self.tokens_per_second / self.devices:,.0f} a chip, at most",
        ]


def write(file: str | Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = Path(f"{file}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def gib(nbytes: float) -> str:
    """1.50 GiB, or 23.4 MiB."""
    if nbytes < GIB / 10:
        return f"{nbytes / 2**20:.1f} MiB" if nbytes else "0"
    return f"{nbytes / GIB:.2f} GiB"


def seconds(s: float) -> str:
    """2.31 s, or 23.1 ms."""
    return f"{s:.2f} s" if s >= 1 else f"{s * 1e3:.3g} ms"
