"""Traces of a range of steps, and what the devices' memory holds after it."""

from pathlib import Path
from typing import Any

import jax

from fmjax.core.errors import ConfigError


class Profile:
    """Records steps `first` to `last`, both included; process 0 alone.

    The directory gets what TensorBoard's profile plugin and Perfetto read (`plugins/profile/…`),
    and `memory.prof`, which pprof reads: the arrays on the devices and where they were made.

    Args:
      directory: created when the trace is written.
      first: number of a step, from 1.
      last: number of a step.

    Raises:
      ConfigError: an empty range.
    """

    def __init__(self, directory: str | Path, first: int, last: int) -> None:
        if not 1 <= first <= last:
            raise ConfigError(
                f"profile {first}:{last} holds no step; give the first and the last, as in 10:15"
            )
        self.directory, self.first, self.last = Path(directory), first, last
        self._running = False

    @classmethod
    def of(cls, text: str, directory: str | Path) -> "Profile | None":
        """ "10:15", or "10" for one step; "" for none.

        Raises:
          ConfigError: something else, or an empty range.
        """
        if not text:
            return None
        first, colon, last = text.partition(":")
        if not first.isdecimal() or not (last.isdecimal() if colon else True):
            raise ConfigError(f"--profile {text}: write the first and the last step, as in 10:15")
        return cls(directory, int(first), int(last if colon else first))

    def step(self, number: int) -> Any:
        """A context around the call of step `number`; begins the trace where that is due."""
        due = self.first <= number <= self.last and jax.process_index() == 0
        if due and not self._running:
            jax.profiler.start_trace(str(self.directory))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def ends(self, number: int) -> bool:
        """Whether step `number`, once the devices have computed it, is the last one recorded.

        All processes say the same: they have to wait for the step, and compare hosts, together.
        """
        return number == self.last

    def stop(self) -> bool:
        """Writes the files if something was recorded; returns whether it was."""
        if not self._running:
            return False
        self._running = False
        jax.profiler.stop_trace()
        jax.profiler.save_device_memory_profile(str(self.directory / "memory.prof"))
        return True
