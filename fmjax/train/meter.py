"""Speed of a run, measured between reports."""

import contextlib
import time
from collections.abc import Iterator

import jax

from fmjax.train.device_peaks import peak_flops


class Meter:
    """Speed, MFU and time left. Compilation, evaluations and saving do not count.

    Args:
      steps: number of the last step.
      flops_per_step: model FLOPs of one step over all devices; None leaves out MFU.
      devices: that share the work.
      unit: of what is counted.
    """

    def __init__(
        self,
        steps: int,
        flops_per_step: float | None,
        devices: list[jax.Device],
        unit: str = "tokens",
    ) -> None:
        self._steps, self._flops, self._unit = steps, flops_per_step, unit
        peak = peak_flops(devices[0])
        self._peak = None if peak is None else peak * len(devices)
        self._since: float | None = None
        self._first, self._count = 0, 0.0

    def count(self, number: int, amount: float) -> None:
        """Step `number` has been computed. The first one, which compiles, starts the clock."""
        if self._since is None:
            self._restart(number)
        else:
            self._count += amount

    def report(self, number: int) -> dict[str, float]:
        """Rates since the last report; empty as long as nothing was measured."""
        if self._since is None or number == self._first:
            return {}
        seconds = (time.perf_counter() - self._since) / (number - self._first)
        rates = {
            f"{self._unit}_per_second": self._count / (number - self._first) / seconds,
            "seconds_left": (self._steps - number) * seconds,
        }
        if self._flops is not None and self._peak is not None:
            rates["mfu"] = self._flops / seconds / self._peak
        self._restart(number)
        return rates

    def _restart(self, number: int) -> None:
        self._since, self._first, self._count = time.perf_counter(), number, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside is not the step's."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start
