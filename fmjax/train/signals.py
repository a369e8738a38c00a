"""Being asked to stop."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopRequest:
    """Inside `with`, SIGTERM and SIGINT ask the loop to stop after the current step.

    A second SIGINT interrupts at once. On several processes the signals of a preemption arrive at
    different times, or at one process only: there JAX's coordination service picks a step at which
    all of them stop. It listens for SIGTERM, so SIGINT is passed on as that.
    """

    def __init__(self) -> None:
        self._asked = False
        self._several = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, step: int) -> bool:
        """Whether to stop after `step`; on several processes, the same answer on all."""
        if self._several:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
