"""Attention kernels on a mesh: each device attends for its rows of the batch and its heads.

Kernels are no einsums that XLA could split over devices. Under `fmjax.core.logical.use` they are
laid out here; elsewhere they are called as they are.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fmjax.core import logical
from fmjax.nn import sequence
from fmjax.nn.masks import Mask


def layout(batch: int, heads: int) -> tuple[Mesh | None, PartitionSpec, int, int]:
    """(mesh, the partition of batch and heads, and how many parts each has).

    The mesh is None where there are no devices to lay anything out on.

    Raises:
      ShardingError: a batch or heads that do not divide.
    """
    current = logical.current()
    if current is None or current[0].size == 1:
        return None, PartitionSpec(None, None), 1, 1
    mesh, rules = current
    shape = (batch, heads)
    partition = logical.spec(("batch", "act_heads"), rules, mesh, shape, name="attention")
    rows, shares = (sequence.parts(mesh, logical.mesh_axes(entry)) for entry in partition)
    return mesh, partition, rows, shares


def on_mesh(
    kernel: Callable[..., jax.Array],
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: Mask,
    bias: jax.Array | None = None,
) -> jax.Array:
    """kernel(q, k, v, mask, bias) → [B, T, H · K], with each device's share of batch and heads.

    Every device sees whole sequences. Where the devices that split the query heads are more than
    the key–value heads, or do not divide them, these are repeated until they do.

    Args:
      kernel: of arrays on one device.
      q_BHTK, k_BGSK, v_BGSK, mask, bias: as in `fmjax.nn.attention.attention`.
    """
    mesh, partition, _, parts = layout(*q_BHTK.shape[:2])
    if mesh is None:
        return kernel(q_BHTK, k_BGSK, v_BGSK, mask, bias)
    batch, heads = partition
    G = k_BGSK.shape[1]
    if G % parts:
        # lcm(G, parts) divides H, as both do: queries stay with their own keys.
        times = math.lcm(G, parts) // G
        k_BGSK, v_BGSK = (jnp.repeat(x, times, axis=1) for x in (k_BGSK, v_BGSK))
    masks = jax.tree.map(lambda x: PartitionSpec(batch) if x.ndim else PartitionSpec(), mask)
    bias_spec = None
    if bias is not None:
        bias_spec = PartitionSpec(batch if bias.shape[0] > 1 else None, heads)
    head = PartitionSpec(batch, heads)
    run = sequence.on_each_device(
        kernel, mesh, (head, head, head, masks, bias_spec), PartitionSpec(batch, None, heads)
    )
    return run(q_BHTK, k_BGSK, v_BGSK, mask, bias)
