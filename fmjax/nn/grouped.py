"""Products of sorted rows with one matrix a group, at the cost of the rows alone.

Shapes: N rows, E groups, D and F the sizes of a group's matrix.
"""

import jax
import jax.numpy as jnp


def grouped_matmul(x_ND: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Multiplies the first sizes[0] rows with w[0], the next sizes[1] with w[1], and so on.

    Accelerators take `jax.lax.ragged_dot`. On CPUs XLA expands that to the product of every row
    with every matrix, so a loop over blocks of rows takes its place.

    Args:
      x_ND: rows, sorted by group.
      w_EDF: matrices, of the same dtype.
      sizes_E: i32, rows of each group. Rows after the last group give zeros and get no gradient.

    Returns:
      [N, F].
    """
    # Both implementations may leave anything in rows without a group, forward and backward.
    grouped = (jnp.arange(len(x_ND)) < jnp.sum(sizes_E))[:, None]
    x = jnp.where(grouped, x_ND, 0)
    y = jax.lax.platform_dependent(x, w_EDF, sizes_E, cpu=_blocked, default=jax.lax.ragged_dot)
    return jnp.where(grouped, y, 0)


def _block(rows: int, groups: int) -> int:
    """Rows a block: an even group's, as each block reads a whole matrix; 128 are enough."""
    return min(128, max(8, rows // groups))


@jax.custom_vjp
def _blocked(x_ND: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return _product(x_ND, w_EDF, sizes_E, transposed=False)


def _product(x: jax.Array, w: jax.Array, sizes_E: jax.Array, transposed: bool) -> jax.Array:
    """Rows times their group's matrix, or its transpose."""
    N, block = len(x), _block(len(x), len(w))
    x = jnp.pad(x, ((0, block), (0, 0)))
    contract = (((1,), (1 if transposed else 0,)), ((), ()))

    def body(j: jax.Array, y: jax.Array) -> jax.Array:
        group, first, _ = _at(j, sizes_E, block)
        rows = jax.lax.dynamic_slice_in_dim(x, first, block)
        # Rows of the next group at the end of the block come out wrong, and are written again by
        # the next block, which starts there.
        new = jax.lax.dot_general(rows, w[group], contract)
        return jax.lax.dynamic_update_slice_in_dim(y, new, first, 0)

    y = jnp.zeros((N + block, w.shape[1 if transposed else 2]), x.dtype)
    return jax.lax.fori_loop(0, _count(sizes_E, block), body, y)[:N]


def _forward(x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return _blocked(x, w, sizes), (x, w, sizes)


def _backward(saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, w, sizes_E = saved
    block = _block(len(x), len(w))
    padded = [jnp.pad(a, ((0, block), (0, 0))) for a in (x, dy)]

    def body(j: jax.Array, dw: jax.Array) -> jax.Array:
        group, first, count = _at(j, sizes_E, block)
        rows, grads = (jax.lax.dynamic_slice_in_dim(a, first, block) for a in padded)
        rows = jnp.where(jnp.arange(block)[:, None] < count, rows, 0)
        product = jnp.matmul(rows.T, grads, preferred_element_type=jnp.float32)
        return dw.at[group].add(product)

    dw = jnp.zeros(w.shape, jnp.float32)
    dw = jax.lax.fori_loop(0, _count(sizes_E, block), body, dw).astype(w.dtype)
    return _product(dy, w, sizes_E, transposed=True), dw, None


_blocked.defvjp(_forward, _backward)


def _count(sizes_E: jax.Array, block: int) -> jax.Array:
    """Number of blocks. They go through the groups in order; none holds rows of two."""
    return jnp.sum(-(-sizes_E // block))


def _at(j: jax.Array, sizes_E: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Group, first row and number of rows of block j."""
    blocks_E = -(-sizes_E // block)
    ends_E = jnp.cumsum(blocks_E)
    group = jnp.searchsorted(ends_E, j, side="right")
    done = (j - (ends_E - blocks_E)[group]) * block  # rows of the group in earlier blocks
    first = (jnp.cumsum(sizes_E) - sizes_E)[group] + done
    return group, first, jnp.minimum(sizes_E[group] - done, block)
