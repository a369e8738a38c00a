"""A step that hangs is reported, with the host and with what its threads are doing."""

import socket
import sys
import threading
import time
import traceback
from typing import Any, TextIO

import jax

from fmjax.train.clock import SLOW, Clock

FIRST = 1800.0
"""Seconds that the first step, which compiles, may take at least."""


class Watchdog:
    """A thread that looks at the clock of a run, inside `with`.

    A step is late when it takes longer than both `factor` times the median of those before and
    `least` seconds; an evaluation or a checkpoint, ten times `least`. Each is reported when it is
    late, again each time that it has taken twice as long, and when it is over. Nothing is stopped:
    a process that has died is found by JAX's own heartbeats, this finds one that lives and hangs.

    Args:
      clock: of the run.
      factor: of the median step.
      least: seconds.
      file: where reports go; default is stderr.
    """

    def __init__(
        self, clock: Clock, *, factor: float = 5.0, least: float = 60.0, file: TextIO | None = None
    ) -> None:
        self._clock, self._factor, self._least = clock, factor, least
        self._file = file
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def limit(self) -> float:
        """Seconds that what goes on now may take."""
        if self._clock.activity in SLOW:
            return 10 * self._least
        usual = self._clock.usual
        return max(self._least, FIRST if usual is None else self._factor * usual)

    def _watch(self) -> None:
        reported, limit, what = None, 0.0, ""
        while not self._over.wait(min(1.0, self._least / 4)):
            since, now = self._clock.since, time.perf_counter()
            if reported is not None and since != reported:
                self._say(f"{what} is over, after {since - reported:.0f} s")
                reported = None
            if reported is None:
                limit = self.limit()
            if now - since > limit and since == self._clock.since:
                what = self._what()
                self._report(what, now - since)
                reported, limit = since, 2 * (now - since)

    def _what(self) -> str:
        activity = self._clock.activity
        if activity in SLOW:
            return f"the {activity} after step {self._clock.step}"
        doing = "" if activity in ("step", "other") else f" ({activity})"
        return f"step {self._clock.step + 1}{doing}"

    def _report(self, what: str, seconds: float) -> None:
        usual = self._clock.usual
        known = "" if usual is None else f" (a step usually takes {usual:.2g} s)"
        self._say(f"{what} has taken {seconds:.0f} s so far{known}; its threads:")
        print(stacks(), file=self._file or sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        print(f"{here()}: {text}", file=self._file or sys.stderr, flush=True)


def stacks() -> str:
    """Where every thread stands, the main one first; threads that stand alike are told once.

    Python's own `faulthandler` ends after a hundred threads, which loaders alone can have.
    """
    frames = sys._current_frames()
    places: dict[str, list[str]] = {}
    threads = sorted(threading.enumerate(), key=lambda t: t is not threading.main_thread())
    for thread in threads:
        if thread is not threading.current_thread() and thread.ident in frames:
            stack = "".join(traceback.format_stack(frames[thread.ident]))
            places.setdefault(stack, []).append(thread.name)
    return "\n".join(f"{', '.join(names)}:\n{stack}" for stack, names in places.items())


def here() -> str:
    """Which process this is, for messages: "host tpu-3 (process 3 of 16)"."""
    host = f"host {socket.gethostname()}"
    count = jax.process_count()
    return host if count == 1 else f"{host} (process {jax.process_index()} of {count})"
