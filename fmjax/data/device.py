"""Batches placed on the devices ahead of the step that uses them."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.core.errors import DataError


class DevicePrefetch(Iterator[dict[str, jax.Array]]):
    """Keeps `depth` batches on their way to the devices.

    Each process passes its own rows; together they form the global arrays. Transfers are
    asynchronous, so that they overlap with the running step.

    Args:
      batches: an iterator of dicts of numpy arrays; `get_state` / `set_state` are passed through.
      sharding: of every array of a batch.
      depth: batches in flight, at least 1.

    Raises:
      DataError: depth below 1.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], sharding: Any, depth: int = 2):
        if depth < 1:
            raise DataError(f"depth={depth} must be at least 1")
        self._batches = batches
        self._sharding, self._depth = sharding, depth
        # With each batch, the iterator's state just after it: what a checkpoint must hold.
        self._ahead: collections.deque = collections.deque()
        self._state = self._read_state()

    def _read_state(self) -> Any:
        get_state = getattr(self._batches, "get_state", None)
        return None if get_state is None else get_state()

    def _fill(self) -> None:
        while len(self._ahead) < self._depth:
            try:
                batch = next(self._batches)
            except StopIteration:
                return
            placed = {
                key: jax.make_array_from_process_local_data(self._sharding, value)
                for key, value in batch.items()
            }
            self._ahead.append((placed, self._read_state()))

    def __iter__(self) -> "DevicePrefetch":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        self._fill()
        if not self._ahead:
            raise StopIteration
        batch, self._state = self._ahead.popleft()
        return batch

    def get_state(self) -> Any:
        """The state after the batches handed out so far, not those in flight."""
        return self._state

    def join_states(self, states: Sequence[Any]) -> Any:
        """Of all processes into one, as the iterator below does."""
        join = getattr(self._batches, "join_states", None)
        return states[0] if join is None else join(states)

    def set_state(self, state: Any) -> None:
        """Drops what is in flight and continues after `state`."""
        self._ahead.clear()
        self._batches.set_state(state)
        self._state = state
