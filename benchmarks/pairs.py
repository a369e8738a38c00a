"""A pair of processes that take turns: fmjax on one side, PyTorch on the other.

The two sides never run at the same time and alternate turn by turn, so that a drift of the
machine's speed meets both. A turn is a call that is not timed and one that is: memory that a
process gave back while it waited is slow to come again, and a training loop does not wait. Printed
are medians and the ratio fmjax / torch of the medians, with the smallest and largest ratio of
neighbouring turns; below 1 means that fmjax is faster or smaller. Memory is the peak resident size
of each process over its timed calls, everything loaded included; for fmjax the compiler's own
figure stands beside it. The PyTorch side gets its fused AdamW.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Side = Callable[[str], tuple[Callable[[], Any], float | None]]
"""Case → a call to time, and the compiler's peak in bytes where one program is the whole call."""

# Name → (what it measures, unit, divisor of the seconds of a call, bound on the ratio).
Cases = Mapping[str, tuple[str, str, float, float]]


def stepping(step: Any, variables: Any, batch: Any) -> tuple[Callable[[], Any], float]:
    """A call that takes one step, and the compiler's peak in bytes."""
    import jax

    held = [step.init(variables, jax.random.key(3))]
    del variables
    memory = step.lower(held[0], batch).compile().memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )

    def train() -> None:
        held[0], metrics = step(held[0], batch)
        jax.block_until_ready((held[0].variables, metrics))

    return train, float(peak)


def torch_stepping(model: Any, loss: Callable[[], Any]) -> Callable[[], Any]:
    """A call that takes one step of AdamW."""
    import torch

    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def train() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return train


def reset_peak() -> None:
    """Forgets the peak resident size of this process so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident size of this process since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def worker(side: Side, case: str) -> None:
    """Answers each line on stdin with one timed call, after one that is not."""
    call, compiler_peak = side(case)
    for _ in range(2):
        call()
    reset_peak()
    print(json.dumps({"ready": compiler_peak}), flush=True)
    for _ in sys.stdin:
        call()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak": peak_bytes()}), flush=True)


class Worker:
    """One side in a process of its own."""

    def __init__(self, side: str, case: str) -> None:
        command = [sys.executable, sys.argv[0], "--worker", side, "--case", case]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.compiler_peak = self._answer("ready")["ready"]
        self.seconds: list[float] = []
        self.peak = 0

    def _answer(self, key: str) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{") and key in line:
                return json.loads(line)
        raise SystemExit("a side of the benchmark died; its message is above")

    def run(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer("seconds")
        self.seconds.append(answer["seconds"])
        self.peak = answer["peak"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(cases: Cases, case: str, rounds: int) -> None:
    """Alternates the sides and prints medians and ratios."""
    title, unit, factor, bound = cases[case]
    sides = {side: Worker(side, case) for side in ("torch", "fmjax")}
    for _ in range(rounds):
        for side in sides.values():
            side.run()
    for side in sides.values():
        side.close()
    ours, theirs = sides["fmjax"], sides["torch"]
    a, b = (statistics.median(side.seconds) * factor for side in (ours, theirs))
    pairs = [x / y for x, y in zip(ours.seconds, theirs.seconds, strict=True)]
    print(f"{case}: {title}")
    print(
        f"  time    fmjax {a:7.2f} {unit}   torch {b:7.2f} {unit}   ratio {a / b:.2f} "
        f"({min(pairs):.2f}–{max(pairs):.2f})   asked: ≤ {bound}"
    )
    compiled = f" (compiler: {ours.compiler_peak / 1e9:.2f})" if ours.compiler_peak else ""
    print(
        f"  memory  fmjax {ours.peak / 1e9:7.2f} GB{compiled}   "
        f"torch {theirs.peak / 1e9:7.2f} GB   ratio {ours.peak / theirs.peak:.2f}",
        flush=True,
    )


def main(description: str, cases: Cases, fmjax_side: Side, torch_side: Side) -> None:
    """The command line of a file of cases."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--case", choices=sorted(cases), help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side")
    parser.add_argument("--worker", choices=("fmjax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker({"fmjax": fmjax_side, "torch": torch_side}[args.worker], args.case)
        return
    for case in [args.case] if args.case else cases:
        compare(cases, case, args.rounds)
