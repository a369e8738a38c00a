"""Experts spread over devices: each device computes for the experts that it holds."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from fmjax.core import logical

Arrays = tuple[jax.Array, ...]
Factors = dict[str, tuple[jax.Array, jax.Array]]


def over_devices(
    compute: Callable[..., jax.Array],
    tokens: Arrays,
    kernels: tuple[jax.Array, ...],
    factors: Factors | None = None,
) -> jax.Array:
    """compute(tokens, kernels, factors, first expert), on the mesh of `logical.use` if one is used.

    Devices that hold different experts and different tokens exchange the tokens: all tokens of
    such a group go to each of its devices, and the sums of what the experts make of them come back.
    No expert has a capacity, so no token is dropped however uneven the routing is.

    Args:
      compute: of tokens [N, …], kernels and factors [E, …] and the number of the first expert,
        gives [N, D]; zero where none of a token's experts is among these.
      tokens: arrays [B, T, …], the first of them [B, T, D].
      kernels: gate and up [E, D, F], down [E, F, D].
      factors: of low-rank adapters, "gate_up_proj": [E, D, r] and [E, r, 2, F], "down_proj":
        [E, F, r] and [E, r, D]; either may be absent.

    Returns:
      [B, T, D].
    """
    factors = factors or {}

    def flat(arrays: Arrays) -> Arrays:
        return tuple(a.reshape(-1, a.shape[-1]) for a in arrays)

    shape = tokens[0].shape
    current = logical.current()
    if current is None or current[0].size == 1:
        return compute(flat(tokens), kernels, factors, 0).reshape(shape)
    mesh, rules = current
    # As inside an MLP: what splits its width does not split the sequence.
    sizes = (*shape[:2], kernels[0].shape[2])
    token = logical.spec(("batch", "seq", "act_mlp"), rules, mesh, sizes, "activation")
    token = PartitionSpec(*token[:2])
    gate = logical.spec(("expert", None, "mlp"), rules, mesh, kernels[0].shape, "experts")
    splits = set(_names(token))
    holders = _names(gate[:1])
    # What splits the tokens cannot split the experts' width too: their sum would mix tokens.
    width = tuple(a for a in _names(gate[2:]) if a not in splits)
    exchange = tuple(a for a in holders if a in splits)
    sums = tuple(a for a in (*holders, *width) if a not in splits)

    def one_device(tokens: Arrays, kernels: Arrays, factors: Factors) -> jax.Array:
        shape, tokens = tokens[0].shape, flat(tokens)
        if exchange:
            tokens = tuple(jax.lax.all_gather(a, exchange, tiled=True) for a in tokens)
        first = jax.lax.axis_index(holders) * len(kernels[0]) if holders else 0
        y = compute(tokens, kernels, factors, first)
        if exchange:
            y = jax.lax.psum_scatter(y, exchange, tiled=True)
        return (jax.lax.psum(y, sums) if sums else y).reshape(shape)

    each, wide = holders or None, width or None
    up, down = PartitionSpec(each, None, wide), PartitionSpec(each, wide, None)
    whole = PartitionSpec(each)
    split = {"gate_up_proj": (whole, PartitionSpec(each, None, None, wide))}
    split |= {"down_proj": (down, whole)}
    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=((token,) * len(tokens), (up, up, down), {k: split[k] for k in factors}),
        out_specs=token,
        check_vma=False,
    )(tokens, kernels, factors)


def _names(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes of a partition, in order."""
    return tuple(name for entry in spec for name in logical.mesh_axes(entry))
