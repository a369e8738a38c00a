"""Memory as a compiler assigns it, which TPUs' does long before the program is written.

libtpu prints the optimised HLO and every allocation a few seconds after it starts; most of its time
goes into machine code after that (59 of 62 s of processor time for a step of LLaMA-7B), which
changes neither.
"""

import dataclasses
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)
_COLOR = re.compile(r", color (\d+)")
_HOST = 5

# What libtpu prints, in this order.
_ALLOCATIONS = "*.after_optimizations-buffer-assignment.txt"
_PROGRAM = "*.after_optimizations.txt"
_BEHIND = "*.after_optimizations_after_buffer_assignment.txt"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes on one device, as in JAX's `memory_analysis`; `host` are those in the host's memory."""

    argument: int
    temp: int
    output: int
    alias: int
    host: int

    @property
    def total(self) -> int:
        """Of the device's own memory: arguments + temporaries + outputs − aliases."""
        return self.argument + self.temp + self.output - self.alias


def of(compiled: Any) -> Sizes:
    """Of a whole program, from its `memory_analysis`."""
    stats = compiled.memory_analysis()
    return Sizes(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
    )


def read(text: str) -> Sizes | None:
    """From the printed allocations; None if there are none to be read."""
    argument = temp = output = alias = host = 0
    found = False
    for size, said in _ALLOCATION.findall(text):
        nbytes, color = int(size), _COLOR.search(said)
        space = int(color.group(1)) if color else 0
        parameter, live = ", parameter" in said, "maybe-live-out" in said
        temporary = ", preallocated-temp" in said
        if space == _HOST:
            host += nbytes * (parameter or temporary)
        elif space == 0:
            argument += nbytes * parameter
            temp += nbytes * temporary
            output += nbytes * live
            alias += nbytes * (parameter and live)
            found |= parameter or temporary
    return Sizes(argument, temp, output, alias, host) if found else None


def before_codegen(
    compile_: Callable[[], Any], directory: Path, patience: float = 0.5
) -> tuple[Any, Sizes | None, str]:
    """Compiles until memory is assigned and its printed form complete.

    The compiler cannot be stopped: it goes on in a thread, and the caller should end its process.

    Args:
      compile_: compiles with `directory` to print to.
      directory: empty.
      patience: seconds that the compiler has to refuse a program after it has printed it.

    Returns:
      (None, sizes, HLO), or (what `compile_` returned, None, "") where that was earlier.

    Raises:
      what `compile_` raises.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = compile_()
        except BaseException as e:  # handed to the caller
            outcome["error"] = e

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    before = None
    while thread.is_alive():
        thread.join(patience / 2)
        printed = _printed(directory)
        if printed is not None and printed == before:
            thread.join(patience)
            if thread.is_alive() and (sizes := read(printed[0])) is not None:
                return None, sizes, printed[1]
        before = printed
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"], None, ""


def _printed(directory: Path) -> tuple[str, str] | None:
    """(allocations, HLO), when what is printed behind them is there."""
    if not list(directory.glob(_BEHIND)):
        return None
    found = [sorted(directory.glob(pattern)) for pattern in (_ALLOCATIONS, _PROGRAM)]
    return (found[0][-1].read_text(), found[1][-1].read_text()) if all(found) else None
