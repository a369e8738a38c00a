"""Sums over a language model's logits, of which only a part exists at any time.

The gradient of each part is taken where the part is computed, in the forward pass: the logits are
never computed twice, and what is kept for the backward pass is a gradient of the size of the hidden
states and, where the head is trained, one of the size of its weights.

Shapes: B batch, T tokens, S devices along the sequence of the hidden states, C tokens of a part, D
hidden size, V vocabulary. A part is the same tokens of every device: [B, S · C].
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from fmjax.core import logical
from fmjax.core.token_sums import TokenSums

LOGITS = 1 << 27
"""Logits that a device may hold when the head chooses: 512 MiB in float32."""

Sums = tuple[jax.Array, dict[str, jax.Array]]
Head = Callable[[Any, jax.Array, jax.Array | None], jax.Array]


def part_length(shape: tuple[int, int], vocab_size: int, chunk: int | None) -> int:
    """C, the tokens of a row that a device puts into a part; 0: all at once, as plain logits.

    Where the logits are split along fewer devices than the hidden states (sequence parallelism), a
    device holds those of more than C.

    Args:
      shape: (B, T) of the whole batch; on a mesh (see `logical.use`) a device has a share of it.
      vocab_size: V.
      chunk: of the request.

    Raises:
      ShardingError: rows or tokens that do not divide over the mesh.
    """
    sizes = (*shape, vocab_size)
    over = _shards(("batch", "seq", "act_vocab"), sizes)
    rows, length, words = (n // k for n, k in zip(sizes, over, strict=True))
    if chunk is None:
        if rows * length * words <= LOGITS:
            return 0
        chunk = LOGITS // words
    parts = math.ceil(length / max(1, min(length, chunk // max(1, rows))))
    own = shape[1] // _along_sequence(shape)
    # Equal parts, if there are any of about this size.
    parts = next((n for n in range(parts, 2 * parts) if own % n == 0), parts)
    return math.ceil(own / parts)


def _along_sequence(shape: tuple[int, int]) -> int:
    """S, for hidden states of (B, T)."""
    return _shards(("batch", "seq"), shape)[1]


def _shards(axes: tuple[str, ...], shape: tuple[int, ...]) -> list[int]:
    """Devices that each dimension of an activation is split over."""
    current = logical.current()
    if current is None:
        return [1] * len(axes)
    mesh, rules = current
    entries = logical.spec(axes, rules, mesh, shape, "activation")
    return [math.prod(mesh.shape[a] for a in jax.tree.leaves(entry)) for entry in entries]


def sum_tokens(
    head: Head,
    variables: Any,
    key: jax.Array | None,
    x_BTD: jax.Array,
    request: TokenSums,
    length: int,
    lay_out: Callable[[jax.Array], jax.Array],
) -> Sums:
    """(loss, {name: sum}) of `request.score` over all tokens, `length` of a row at a time.

    Args:
      head: (variables, x [B, C, D], key) → logits f32 [B, C, V]; pure.
      variables: pytree; leaves that nothing differentiates take no gradient and no memory.
      key: for dropout in the head, or None.
      x_BTD: the last hidden state.
      request: see `TokenSums`.
      length: C.
      lay_out: puts an array with the shape of a variable where that variable lies.
    """
    shards = _along_sequence(x_BTD.shape[:2])
    leaves, treedef = jax.tree.flatten(variables)

    def split(x: jax.Array) -> jax.Array:  # [B, T, …] → [B, S, T / S, …], in place.
        x = x.reshape(x.shape[0], shards, x.shape[1] // shards, *x.shape[2:])
        return logical.constrain(x, ("batch", "seq", *(None,) * (x.ndim - 2)))

    def run(leaves: list[Any], x: Any, arrays: Any, key: Any, wanted: list[bool] | None) -> Any:
        """The sums; with `wanted` (which leaves to differentiate by) the gradients too."""
        x, arrays = split(x), [split(a) for a in arrays]
        chosen = [leaf for leaf, want in zip(leaves, wanted or [], strict=False) if want]

        def part(carry: Any, start: Any, size: int) -> Any:
            sums, grads, x = carry
            cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, 2)  # noqa: E731
            merge = lambda a: a.reshape(a.shape[0], shards * size, *a.shape[3:])  # noqa: E731
            own = None if key is None else jax.random.fold_in(key, start)

            def score(chosen: list[Any], x: jax.Array) -> Sums:
                picked = iter(chosen)
                full = [
                    next(picked) if want else leaf
                    for leaf, want in zip(leaves, wanted or [False] * len(leaves), strict=True)
                ]
                logits = head(treedef.unflatten(full), x, own)
                return request.score(logits, *[merge(cut(a)) for a in arrays])

            here = merge(cut(x))
            if wanted is None:
                new = score([], here)
            else:
                loss, pull, more = jax.vjp(score, chosen, here, has_aux=True)
                new = (loss, more)
                by_leaf, by_x = pull(jnp.ones_like(loss))
                grads = [
                    lay_out(g + new.astype(g.dtype)) for g, new in zip(grads, by_leaf, strict=True)
                ]
                # The gradient takes the place of what it is the gradient by.
                by_x = by_x.reshape(x.shape[0], shards, size, x.shape[3])
                x = jax.lax.dynamic_update_slice_in_dim(x, by_x, start, 2)
            return jax.tree.map(jnp.add, sums, new), grads, x

        total, size = x.shape[2], length
        shapes = jax.eval_shape(
            lambda *parts: request.score(head(variables, parts[0], key), *parts[1:]),
            *(
                jax.ShapeDtypeStruct((a.shape[0], shards * size, *a.shape[3:]), a.dtype)
                for a in (x, *arrays)
            ),
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        grads = [lay_out(jnp.zeros(leaf.shape, jnp.float32)) for leaf in chosen]
        carry = (zeros, grads, x)
        parts = total // size
        carry = jax.lax.fori_loop(0, parts, lambda i, c: part(c, i * size, size), carry)
        if rest := total % size:
            carry = part(carry, parts * size, rest)
        sums, grads, x = carry
        return sums, grads, x.reshape(x_BTD.shape)

    @jax.custom_vjp
    def summed(leaves: list[Any], x: Any, arrays: Any, key: Any) -> Sums:
        return run(leaves, x, arrays, key, None)[0]

    def forward(leaves: Any, x: Any, arrays: Any, key: Any) -> Any:
        wanted = [leaf.perturbed for leaf in leaves]
        values = jax.tree.map(lambda p: p.value, (leaves, x, arrays, key), is_leaf=_is_primal)
        sums, grads, by_x = run(*values, wanted)
        grads = iter(grads)
        return sums, (
            [next(grads).astype(p.value.dtype) if p.perturbed else None for p in leaves],
            by_x,
        )

    def backward(kept: Any, cotangents: Any) -> Any:
        by_leaf, by_x = kept
        scale = cotangents[0]
        if isinstance(scale, SymbolicZero):
            return None, None, None, None
        times = lambda g: None if g is None else (scale * g).astype(g.dtype)  # noqa: E731
        return [times(g) for g in by_leaf], times(by_x), None, None

    summed.defvjp(forward, backward, symbolic_zeros=True)
    loss, more = summed(leaves, x_BTD, list(request.arrays), key)
    return loss, jax.lax.stop_gradient(more)


def _is_primal(x: Any) -> bool:
    return hasattr(x, "perturbed")
