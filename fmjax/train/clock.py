"""Where the time of a run goes, kept over restarts.

Every second since the first start belongs to one activity: "step" is what the run is for, the rest
is lost to "compile", "input" (waiting for a batch), "evaluation", "checkpoint", "restart" (from the
checkpoint that a run goes on from until it goes on) and "other". The share of "step" is the run's
goodput.
"""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax

SLOW = ("evaluation", "checkpoint")
"""Activities that may take long and are no part of a step."""

_compiled = 0.0  # seconds that this process has spent compiling


def _on_duration(event: str, seconds: float, **_: Any) -> None:
    global _compiled
    if event.startswith("/jax/core/compile/"):
        _compiled += seconds


jax.monitoring.register_event_duration_secs_listener(_on_duration)


class Clock:
    """Attributes time to activities; read by the loop and, from its thread, by the watchdog.

    Args:
      saved: `notes()` of the checkpoint that the run goes on from.

    Attributes:
      seconds: by activity, since the first start of the run.
      activity: what goes on now.
      since: when the step, or the slow activity, that goes on now began (`time.perf_counter`).
      step: number of the newest finished step.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self.seconds: dict[str, float] = dict((saved or {}).get("seconds", {}))
        if saved and not saved.get("complete"):
            self._add("restart", max(0.0, time.time() - saved["at"]))
        self.activity, self.step = "other", 0
        self.since = self._marked = self._beat = time.perf_counter()
        self._compiled = _compiled
        self._durations: deque[float] = deque(maxlen=64)
        self._slow = 0.0

    def _add(self, activity: str, seconds: float) -> None:
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds

    def _mark(self) -> float:
        """Books the time since the last mark; returns now."""
        now, compiled = time.perf_counter(), _compiled
        elapsed = now - self._marked
        compiling = min(elapsed, compiled - self._compiled)
        self._add("compile", compiling)
        self._add(self.activity, elapsed - compiling)
        self._marked, self._compiled = now, compiled
        return now

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """The time inside belongs to this activity."""
        start, before = self._mark(), self.activity
        self.activity = activity
        if activity in SLOW:
            self.since = start
        try:
            yield
        finally:
            end = self._mark()
            self.activity = before
            if activity in SLOW:
                self.since = end
                self._slow += end - start

    def beat(self, step: int) -> None:
        """Step number `step` has been computed; the next one goes on."""
        now = time.perf_counter()
        if self.step:  # the first one compiles
            self._durations.append(now - self._beat - self._slow)
        self.step, self._slow = step, 0.0
        self._beat = self.since = now

    @property
    def usual(self) -> float | None:
        """Median seconds of the last steps; None before the second."""
        return statistics.median(tuple(self._durations)) if self._durations else None

    def goodput(self) -> float:
        """Share of the time in which steps were computed, 0 to 1."""
        self._mark()
        return self.seconds.get("step", 0.0) / max(sum(self.seconds.values()), 1e-9)

    def summary(self) -> str:
        """One line: goodput 91.2%: step 1:23:10, compile 0:00:32, …"""
        share = self.goodput()
        known = sorted(self.seconds.items(), key=lambda pair: -pair[1])
        parts = [f"{name} {_clock(seconds)}" for name, seconds in known if seconds >= 0.5]
        return f"goodput {share:.1%}: {', '.join(parts) or 'less than a second'}"

    def notes(self, complete: bool) -> dict[str, Any]:
        """For the checkpoint: JSON values.

        Args:
          complete: the run has all its steps, so that what comes until it goes on is no loss.
        """
        self._mark()
        return {"seconds": self.seconds, "at": time.time(), "complete": complete}


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
