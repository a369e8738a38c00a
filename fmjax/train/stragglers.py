"""Which host holds up the others.

All hosts take the same time for a step, since they wait for each other in it. What differs is what
each does by itself: waiting for its input, other work of the host, and how fast its own devices
are, which a small computation without the others tells.
"""

import math
import socket
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.train.clock import Clock

COLUMNS = ("input", "other", "probe")
_NAME = 64  # bytes of a host's name that are sent


class Stragglers:
    """Compares the hosts every so many steps; all processes must call it after each step.

    Args:
      clock: of this process.
      every: steps between comparisons.
    """

    def __init__(self, clock: Clock, every: int = 200) -> None:
        self._clock, self._every = clock, every
        self._before = dict(clock.seconds)
        self._at: int | None = None  # the step of the last comparison, or before the first call

    def __call__(self, step: int, seconds: float | None) -> tuple[dict[str, float], list[str]]:
        """What the hosts need at this step, if it is time.

        Args:
          step: number of the newest step.
          seconds: that a step takes.

        Returns:
          ({"slowest_input_seconds": …}, what to tell the user); both empty in between, and where
          there is one process.
        """
        if self._at is None:
            self._at = step - 1
        if jax.process_count() == 1 or step % self._every or seconds is None:
            return {}, []
        steps = max(step - self._at, 1)
        self._clock.goodput()  # books the time up to now
        spent = [
            (self._clock.seconds.get(name, 0.0) - self._before.get(name, 0.0)) / steps
            for name in COLUMNS[:2]
        ]
        self._before, self._at = dict(self._clock.seconds), step
        table, hosts = gather(dict(zip(COLUMNS, (*spent, probe()), strict=True)))
        metrics = {f"slowest_{name}_seconds": float(max(table[name])) for name in COLUMNS}
        return metrics, judge(table, hosts, seconds)


def judge(table: Mapping[str, np.ndarray], hosts: list[str], seconds: float) -> list[str]:
    """Sentences on hosts that stand out.

    Args:
      table: seconds of each process, f[P], for "input" and "other" (of a step) and "probe".
      hosts: their names.
      seconds: that a step takes.
    """
    found = []
    for name, values in table.items():
        usual, worst = float(np.median(values)), int(np.argmax(values))
        # What a host does while the devices compute holds nobody up.
        weighs = name == "probe" or values[worst] > 0.1 * seconds
        if weighs and values[worst] > 1.5 * usual:
            what = {
                "input": "waits for its input",
                "other": "is busy between steps",
                "probe": "needs for a small computation on its devices",
            }[name]
            found.append(
                f"straggler: host {hosts[worst]} (process {worst}) {what} {values[worst]:.3g} s, "
                f"the median host {usual:.3g} s"
            )
    return found


def gather(values: Mapping[str, float]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Of all processes: values by name, f32 [P] each, and the hosts' names."""
    from jax.experimental import multihost_utils

    name = np.zeros(_NAME, np.uint8)
    text = socket.gethostname().encode()[:_NAME]
    name[: len(text)] = list(text)
    numbers, names = multihost_utils.process_allgather(
        (np.array(list(values.values()), np.float32), name)
    )
    hosts = [bytes(row[row > 0]).decode(errors="replace") for row in np.atleast_2d(names)]
    columns = np.atleast_2d(numbers).T
    return dict(zip(values, columns, strict=True)), hosts


def probe(size: int = 512, repeats: int = 8, tries: int = 5) -> float:
    """Seconds for a few matmuls on the slowest of this process's devices, without the others.

    Of each device the best try counts: one alone takes some tens of microseconds, of which the
    start by the host is a part that varies.
    """
    slowest = 0.0
    for device in jax.local_devices():
        x = jax.device_put(jnp.full((size, size), 1 / size), device)
        _matmuls(x, repeats).block_until_ready()  # compiles the first time
        best = math.inf
        for _ in range(tries):
            start = time.perf_counter()
            _matmuls(x, repeats).block_until_ready()
            best = min(best, time.perf_counter() - start)
        slowest = max(slowest, best)
    return slowest


def _chain(x: jax.Array, repeats: int) -> jax.Array:
    return jax.lax.fori_loop(0, repeats, lambda _, y: y @ x, x)


_matmuls = jax.jit(_chain, static_argnums=1)
