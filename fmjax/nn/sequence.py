"""The sequence split over devices: which mesh axes split it, and the order that balances the work.

With a causal mask the last tokens see most keys. If n devices each hold one piece of the sequence
in order, the last one works nearly twice as long as the mean. So the sequence is cut into 2n
chunks, and device i holds chunks i and 2n − 1 − i ("zigzag", as in Llama 3, arXiv:2407.21783, and
with smaller pieces in striped attention, arXiv:2311.09431): at every step of the ring each device
then has the same number of visible (query, key) pairs.

A decoder enters this order before its first layer and leaves it before its head, so objectives,
heads and outputs know nothing of it. What depends on order in between goes by `Mask.slots`.

Shapes: B batch, T tokens, n devices along the sequence.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fmjax.core import logical
from fmjax.nn.masks import Mask


def split_axes(tokens: int) -> tuple[str, ...]:
    """The mesh axes larger than 1 that split T tokens while attending; none outside a mesh.

    What splits the heads as well (sequence parallelism) splits the sequence elsewhere only.

    Raises:
      ShardingError: T does not divide over them.
    """
    current = logical.current()
    if current is None:
        return ()
    mesh, rules = current
    shape = (mesh.size, tokens)
    entries = logical.spec(("act_heads", "seq"), rules, mesh, shape, "activation")
    return logical.mesh_axes(entries[1])


def parts(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """n, the number of devices along these axes."""
    return math.prod(mesh.shape[a] for a in axes)


def on_each_device(
    f: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """f over the parts that the devices of the mesh hold."""
    # Inside a map over some of the axes, only the others are left to be mapped.
    around = jax.sharding.get_abstract_mesh()
    taken = set(around.manual_axes)
    return jax.shard_map(
        f,
        mesh=around if taken else mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(mesh.axis_names) - taken,
        check_vma=False,
    )


def balanced_slots(mask: Mask, tokens: int, cached: bool) -> np.ndarray | None:
    """i32 [1, T], the slot of each token in zigzag order; None where the order stays as it is.

    It stays where the sequence is not split, where keys come from a cache, where queries see both
    sides (all have the same work) and where T is not a multiple of 2n.
    """
    axes = () if cached or not mask.causal else split_axes(tokens)
    if not axes:
        return None
    n = parts(logical.current()[0], axes)
    if tokens % (2 * n):
        return None
    chunks = np.arange(tokens, dtype=np.int32).reshape(2 * n, -1)
    order = np.stack([np.arange(n), 2 * n - 1 - np.arange(n)], 1).reshape(-1)
    return chunks[order].reshape(1, -1)


def balanced(mask: Mask, slots: np.ndarray) -> Mask:
    """The mask of the same tokens in zigzag order."""
    valid = None if mask.valid is None else zigzag(mask.valid)
    segments = None if mask.segments is None else tuple(map(zigzag, mask.segments))
    return mask.replace(valid=valid, segments=segments, slots=jnp.asarray(slots))


def zigzag(x: jax.Array, inverse: bool = False) -> jax.Array:
    """x [B, T, …] from the order of the text to zigzag order, or back.

    Each device sends its two halves to one device each; nothing is gathered.
    """
    mesh, rules = logical.current()
    axes = split_axes(x.shape[1])
    n = parts(mesh, axes)
    (rows,) = logical.spec(("batch",), rules, mesh, x.shape[:1], "activation")
    spec = PartitionSpec(rows, axes)
    # Device d holds chunks 2d and 2d + 1 of the text. Each permutation reaches every device once:
    # the even chunks go to even devices from the front half, to odd ones from the back half.
    home = [c if c < n else 2 * n - 1 - c for c in range(2 * n)]
    even, odd = ([(d, home[2 * d + half]) for d in range(n)] for half in (0, 1))

    def swap_on_odd(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        is_odd = jax.lax.axis_index(axes) % 2 == 1
        return jnp.where(is_odd, second, first), jnp.where(is_odd, first, second)

    def one_device(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=1)
        if inverse:
            first, second = swap_on_odd(first, second)
            first = jax.lax.ppermute(first, axes, [(to, at) for at, to in even])
            second = jax.lax.ppermute(second, axes, [(to, at) for at, to in odd])
        else:
            first = jax.lax.ppermute(first, axes, even)
            second = jax.lax.ppermute(second, axes, odd)
            first, second = swap_on_odd(first, second)
        return jnp.concatenate([first, second], axis=1)

    return on_each_device(one_device, mesh, spec, spec)(x)
