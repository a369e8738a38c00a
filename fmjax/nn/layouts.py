"""Layouts in memory that TPUs' compiler would not choose by itself, where its own take more room.

Read off scheduled programs of LLaMA-7B on 64 × v5p (remat "minimal", 4 × 4096 tokens a chip): of
45.46 GiB, 0.34 are copies of stacked weights, made before the loop over the layers and padded from
64 columns to 128 lanes, since a gathered matrix was wanted with its input dimension last; 0.09 and
up to 15 % of the memory traffic (on 16 chips) are copies of the layers' inputs, saved with the
tokens last; 0.19 are halves of rotated queries and keys, padded to 128 lanes and held until what
they are joined to is saved, after the MLP.
"""

from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from fmjax.core.logical import platform


def row_major(x: Any) -> Any:
    """The same arrays with their last dimension last in memory too; as they are but on TPUs."""
    return jax.tree.map(
        lambda a: with_layout_constraint(a, Layout(tuple(range(a.ndim)))) if _applies(a) else a, x
    )


def whole(x: jax.Array) -> jax.Array:
    """The same array, computed once and held in one piece; as it is but on TPUs."""
    return jax.lax.optimization_barrier(x) if _applies(x) else x


def _applies(x: jax.Array) -> bool:
    # What is computed step by step, outside of jit, has its layout already.
    return x.ndim > 1 and isinstance(x, jax.core.Tracer) and platform() == "tpu"
