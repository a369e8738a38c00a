"""Which of the checkpoints is best."""

import math
from collections.abc import Sequence
from typing import Any


class KeepBest:
    """Orbax's preservation policy for the one checkpoint that is best."""

    def __init__(self, best: tuple[str, str]) -> None:
        self.best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        step = best_step(checkpoints, self.best)
        return [c.step == step for c in checkpoints]


def best_step(checkpoints: Sequence[Any], best: tuple[str, str]) -> int | None:
    """The step of the best, by (metric, "min" | "max"); None where none has a finite one."""
    name, mode = best
    sign = 1 if mode == "min" else -1
    values = [
        (sign * c.metrics[name], c.step)
        for c in checkpoints
        if c.metrics and math.isfinite(c.metrics.get(name, math.nan))
    ]
    return min(values)[1] if values else None
