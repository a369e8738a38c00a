"""One layer's kernel with its low-rank adapter folded in.

`leaves` are those of one module of the "adapter" collection, of one layer: lora_a, lora_b,
lora_scale, and where the adapter has them magnitude (DoRA) and lora_bias.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.nn import low_rank

Leaves = Mapping[str, jax.Array]


def delta(leaves: Leaves) -> jax.Array:
    """s · A B in float32: kernel-shaped [in, *out], [E, in, *out] of experts, [h, w, in, out]."""
    a, b, scale = leaves["lora_a"], leaves["lora_b"], leaves["lora_scale"]
    if _experts(leaves):
        return jax.vmap(low_rank.delta, (0, 0, None))(a, b, scale)
    return low_rank.delta(a, b, scale)


def merged(w: Any, leaves: Leaves) -> jax.Array:
    """The kernel that gives alone what `w` and the adapter give together, in float32.

    W + s A B, or with a magnitude m · (W + s A B) / ‖W + s A B‖, the norm over the inputs.

    Args:
      w: one layer's kernel [in, *out], table [V, D], convolution [h, w, in, out] or experts
        [E, in, *out]; a packed one is unpacked.
      leaves: of the module.
    """
    total = low_rank.as_array(w).astype(jnp.float32) + delta(leaves)
    return total if "magnitude" not in leaves else _factor(w, leaves) * total


def bias_change(leaves: Leaves) -> jax.Array | None:
    """What the adapter adds to the layer's bias, f32 [*out], or None: s · lora_bias."""
    bias = leaves.get("lora_bias")
    return None if bias is None else leaves["lora_scale"] * bias.astype(jnp.float32)


def unmerged(total: Any, leaves: Leaves, norm: jax.Array | None = None) -> jax.Array:
    """The inverse of `merged`, in float32; of DoRA given the norm that `merged` divided by.

    Args:
      total: what `merged` gave.
      leaves: of the module.
      norm: ‖W + s A B‖ of the base, as `norm` gives it; it cannot be had from the merged kernel.
    """
    total = low_rank.as_array(total).astype(jnp.float32)
    if "magnitude" in leaves and norm is not None:
        total = total * jnp.where(
            leaves["lora_scale"] != 0, norm / leaves["magnitude"].astype(jnp.float32), 1
        )
    return total - delta(leaves)


def norm(w: Any, leaves: Leaves) -> jax.Array:
    """‖W + s A B‖ over the inputs, f32 [*out]: where DoRA's magnitude starts, with B = 0."""
    a, b, scale = leaves["lora_a"], leaves["lora_b"], leaves["lora_scale"]
    return low_rank.column_norm(*_flat(w, a), b, scale)


def _factor(w: Any, leaves: Leaves) -> jax.Array:
    a, b, scale = leaves["lora_a"], leaves["lora_b"], leaves["lora_scale"]
    return low_rank.dora_factor(*_flat(w, a), b, scale, leaves["magnitude"])


def _flat(w: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of a convolution, height, width and inputs as one axis."""
    lead = a.ndim - 1
    w = low_rank.as_array(w)
    return w.reshape(-1, *w.shape[lead:]), a.reshape(-1, a.shape[-1])


def _experts(leaves: Leaves) -> bool:
    # Of a convolution A has one axis more still, [h, w, in, r].
    return leaves["lora_a"].ndim == 3
