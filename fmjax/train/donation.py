"""Whether a compiled step updates in place what it was given for that."""

import math
import warnings
from typing import Any

import jax

# A program may keep what is small apart: a counter, a key.
SMALL = 1 << 16


def check_donation(compiled: jax.stages.Compiled, donated: Any) -> int:
    """Bytes on a device that were donated and yet exist twice; warns where there are any.

    Args:
      compiled: the program.
      donated: pytree of the arrays, or `ShapeDtypeStruct`s with shardings, that it consumes.
    """
    given = sum(_bytes(x) for x in jax.tree.leaves(donated))
    memory = compiled.memory_analysis()
    # Accelerators count apart what lies in the host's memory.
    reused = memory.alias_size_in_bytes + memory.host_alias_size_in_bytes
    lost = max(0, given - reused)
    if lost <= SMALL:
        return 0
    warnings.warn(
        f"{lost:,} of {given:,} donated bytes on each device are not updated in place: the step "
        "holds them twice; give its outputs the shape, dtype and sharding of its inputs",
        stacklevel=2,
    )
    return lost


def _bytes(x: Any) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
        return 0
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize
