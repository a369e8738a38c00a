"""What the person at the terminal sees of a run."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def has_bars(console: Console) -> bool:
    """Whether a bar can be drawn: on a terminal, and in a notebook that has ipywidgets.

    Without ipywidgets rich would draw nothing there, once it has warned.
    """
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class Display:
    """A live bar where one can be drawn, one line a report elsewhere. Writes to stderr.

    Args:
      total: steps of the run.
      enabled: False shows nothing.
      console: default is stderr.
    """

    def __init__(self, total: int, enabled: bool = True, console: Console | None = None) -> None:
        self._total = total
        self._console = console or Console(stderr=True, highlight=False)
        self._enabled = enabled
        self._bar: Progress | None = None

    def __enter__(self) -> "Display":
        if self._enabled and has_bars(self._console):
            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("compiling", total=self._total)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows loss, learning rate, tokens/s, MFU and the time left, as far as they are known."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, description=describe(step, self._total, metrics)
            )
        elif self._enabled:
            self._print(describe(step, self._total, metrics))

    def message(self, text: str) -> None:
        """A line that stays."""
        if self._enabled:
            self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def describe(step: int, total: int, metrics: Mapping[str, float]) -> str:
    """One line: step 20/100 · loss 3.4120 · 12.3k tokens/s · MFU 41.2% · 0:01:02 left"""
    parts = [f"step {step}/{total}"]
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    if "learning_rate" in metrics:
        parts.append(f"lr {metrics['learning_rate']:.2e}")
    for unit in ("tokens", "examples"):
        if f"{unit}_per_second" in metrics:
            parts.append(f"{_short(metrics[f'{unit}_per_second'])} {unit}/s")
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if metrics.get("skipped"):
        parts.append(f"{metrics['skipped']:.0f} skipped")
    if "seconds_left" in metrics:
        parts.append(f"{_clock(metrics['seconds_left'])} left")
    return " · ".join(parts)


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
