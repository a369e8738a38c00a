"""Rows of a table that is spread over devices, read by tokens that are spread over devices.

Shapes: V rows, D columns; B batch, T positions.

Left to itself the compiler gathers the activations of the whole batch on every device where the
axis that splits the columns splits the batch too ("involuntary full rematerialization"). What has
to travel is less: the ids, which are small, and each row once, from its columns to its token.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fmjax.core import logical


def lookup(
    table_VD: jax.Array,
    ids_BT: jax.Array,
    axes: tuple[str | None, str | None],
    dtype: jnp.dtype,
) -> jax.Array:
    """table[ids] in `dtype`, laid out as activations are; ids outside the table give NaN.

    Args:
      table_VD: the table, whole or split by rows, columns or both.
      ids_BT: i32, of any rank; other ranks than 2 are left to the compiler.
      axes: logical names of the table's dimensions.
      dtype: rounded to before anything travels; gradients are summed in the table's own.

    Returns:
      [B, T, D].
    """
    current = logical.current()
    if current is None or current[0].size == 1 or ids_BT.ndim != 2:
        return _take(table_VD, ids_BT, dtype)
    mesh, rules = current
    table = logical.spec(axes, rules, mesh, table_VD.shape, "embedding")
    rows, columns = (logical.mesh_axes(entry) for entry in table)
    if not rows and not columns:
        return _take(table_VD, ids_BT, dtype)
    shape = (*ids_BT.shape, table_VD.shape[1])
    tokens = logical.spec(("batch", "seq", "act_embed"), rules, mesh, shape, "activation")[:2]
    dims = {a: dim for dim, entry in enumerate(tokens) for a in logical.mesh_axes(entry)}
    return jax.shard_map(
        functools.partial(_one_device, rows, columns, dims, table_VD.shape[0], dtype),
        mesh=mesh,
        in_specs=(table, PartitionSpec(*tokens)),
        out_specs=PartitionSpec(*tokens, None),
        # Columns gathered by `all_gather` are equal on all devices, which the check cannot see.
        check_vma=set(columns) <= dims.keys(),
    )(table_VD, ids_BT)


def _take(table_VD: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.take(table_VD, ids, axis=0, mode="fill", fill_value=jnp.nan).astype(dtype)


def _one_device(
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    dims: dict[str, int],
    size: int,
    dtype: jnp.dtype,
    table_VD: jax.Array,
    ids_BT: jax.Array,
) -> jax.Array:
    """What one device does with its part of the table and its tokens.

    Args:
      rows, columns: mesh axes that split the table.
      dims: mesh axis → dimension of the tokens that it splits.
      size: V of the whole table.
    """
    order = (*rows, *columns)
    # Devices that hold different parts of the table look the same tokens up …
    for axis in order:
        if axis in dims:
            ids_BT = jax.lax.all_gather(ids_BT, axis, axis=dims[axis], tiled=True)
    # jnp.take reads negative ids from the end, and so do we.
    ids = jnp.where(ids_BT < 0, ids_BT + size, ids_BT)
    first = jax.lax.axis_index(rows) * table_VD.shape[0] if rows else 0
    here = (ids >= first) & (ids < first + table_VD.shape[0])
    y = table_VD[jnp.where(here, ids - first, 0)].astype(dtype)
    y = jnp.where(here[..., None], y, 0)
    y = jnp.where(((ids >= 0) & (ids < size))[..., None], y, jnp.nan)
    # … and each gives the others what it found of theirs. Columns are put together from the
    # innermost axis outwards, as they were cut.
    for axis in reversed(order):
        dim = dims.get(axis)
        if axis in rows:
            y = (
                jax.lax.psum(y, axis)
                if dim is None
                else jax.lax.psum_scatter(y, axis, scatter_dimension=dim, tiled=True)
            )
        elif dim is None:
            y = jax.lax.all_gather(y, axis, axis=2, tiled=True)
        else:
            y = jax.lax.all_to_all(y, axis, split_axis=dim, concat_axis=2, tiled=True)
    return y
