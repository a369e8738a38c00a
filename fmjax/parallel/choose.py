"""A mesh and a rule list for a model, where nobody named them.

Weights that fit on every device stay whole, as nothing then travels but gradients. Else they are
split over the devices of a slice. Heads are split as well where there are too few rows for all
devices or too many devices for one axis, and experts have devices of their own. Slices, between
which the network is slow, share nothing but the gradient.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.parallel.mesh import slice_count

ROOM = 0.7
"""Share of a device's memory that weights, gradients and optimizer state may take; the rest is for
activations."""

WIDEST = 256
"""Devices on `fsdp`, and `expert`, at most: with more, gathering weights takes longer than using
them, and a batch has fewer rows."""

TENSOR = (1, 2, 4, 8, 16)
"""Sizes of `tensor` to choose from: not more than are close neighbours."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the choice follows from.

    Attributes:
      state_bytes: of weights, gradients and optimizer state together, were they on one device.
      rows: of a (micro)batch.
      width: of the model, which `fsdp` divides.
      heads, inner: of the queries, and the feed-forward width, which `tensor` divides.
      experts: of each layer; 0 for none.
    """

    state_bytes: float
    rows: int
    width: int
    heads: int
    inner: int
    experts: int = 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """A layout: `make_mesh(**sizes)` and `RULES[rules]`.

    Attributes:
      sizes: devices by axis, over all slices; those left out are 1.
      rules: name of a list.
      reason: why, in a few words.
    """

    sizes: dict[str, int]
    rules: str
    reason: str

    def __str__(self) -> str:
        axes = " × ".join(f"{axis} {n}" for axis, n in self.sizes.items() if n > 1) or "one device"
        return f"layout: {axes}, rules {self.rules} ({self.reason})"


def state_bytes(
    trained: int, frozen: int = 0, frozen_bits: float = 16, moments_bits: float = 32
) -> float:
    """Bytes of weights, gradients and optimizer state.

    Trained weights and their gradients are float32, with two moments each.

    Args:
      trained, frozen: numbers of weights.
      frozen_bits, moments_bits: of one frozen weight and of one moment.
    """
    return trained * (8 + 2 * moments_bits / 8) + frozen * frozen_bits / 8


def device_memory(devices: Sequence[Any]) -> float | None:
    """Bytes of the smallest device; virtual CPU devices share the machine's. None if nobody says.

    All processes must call this together, and all get the same: a process can ask its own devices
    only, and processes that chose different layouts would wait for each other for ever.
    """
    own = next((d for d in devices if d.process_index == jax.process_index()), devices[0])
    if own.platform == "cpu":
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    else:
        try:
            size = (own.memory_stats() or {}).get("bytes_limit")
        except Exception:  # a device of a topology, which is not there
            size = None
    if jax.process_count() == 1:
        return size
    sizes = multihost_utils.process_allgather(np.float32(size or np.inf))
    least = float(np.min(sizes))
    return least if math.isfinite(least) else None


def choose(needs: Needs, devices: Sequence[Any], memory: float | None = None) -> Choice:
    """A layout of a training step over all devices.

    Args:
      needs: of the step.
      devices: with `slice_index` where they are several slices.
      memory: bytes of each; default what `device_memory` says, else 16 GB.
    """
    count, slices = len(devices), slice_count(devices)
    memory = memory or device_memory(devices) or 16e9
    whole = needs.state_bytes
    if count == 1:
        return Choice({"data": 1}, "ddp", "one device")
    if whole <= ROOM * memory:
        return Choice({"data": count}, "ddp", f"{_gb(whole)} fit on each device")
    inside = count // slices
    tensor = _tensor(needs, count, inside)
    rest = inside // tensor
    expert = math.gcd(needs.experts, rest, needs.width) if needs.experts else 1
    fsdp = _fsdp(rest // expert, needs.width // expert, expert)
    sizes = {"data": count // (tensor * expert * fsdp), "fsdp": fsdp, "tensor": tensor}
    sizes["expert"] = expert
    each = whole / (tensor * expert * fsdp)
    reason = f"{_gb(whole)} do not fit on one device, {_gb(each)} on each"
    if each > ROOM * memory:
        reason += f" are much for {_gb(memory)}"
    if slices > 1:
        reason += f", {slices} slices on data"
    name = "expert" if expert > 1 else "fsdp_tensor" if tensor > 1 else "fsdp"
    return Choice(sizes, name, reason)


def _tensor(needs: Needs, count: int, inside: int) -> int:
    """The smallest size over whose groups the rows divide; 1 if there is none.

    Then the batch is refused with the size that it would need.
    """
    for size in TENSOR:
        fits = all(n % size == 0 for n in (inside, needs.heads, needs.inner))
        if fits and needs.rows % (count // size) == 0 and inside // size <= WIDEST:
            return size
    return 1


def _fsdp(rest: int, width: int, expert: int) -> int:
    """The most of `rest` devices, of which the others become replicas."""
    most = max(WIDEST // expert, 1)
    return max(n for n in range(1, rest + 1) if rest % n == 0 and width % n == 0 and n <= most)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
