"""The ring form of `fmjax.objectives.pairs`: columns go round the devices that split the batch.

Each device keeps its rows. At every step it takes them, chunk by chunk, against the columns that it
holds; the columns travel on together with what has been reduced of them, and are home after n
steps. The backward pass computes each chunk of logits again and goes round once more with the
gradients. So a device holds [B/n, chunk] logits, whatever the global batch.

Shapes: B pairs of the global batch, D size of an embedding; inside `shard_map` those of one device,
whose columns are K chunks of C.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fmjax.core import logical
from fmjax.objectives.pair_reductions import EMPTY, Others, Reduction


def over_others_around(
    reduction: Reduction,
    x_BD: jax.Array,
    y_BD: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    real_B: jax.Array,
    chunk: int,
) -> Others:
    """See `fmjax.objectives.pairs.over_others`."""
    current, batch = logical.current(), None
    if current is not None:
        (batch,) = logical.spec(("batch",), current[1], current[0], real_B.shape, "embeddings")
    mesh = None if batch is None else current[0]
    # The number of each row, by which it knows its own column; −1 for rows that only fill.
    numbers = jnp.where(real_B, jnp.arange(real_B.shape[0], dtype=jnp.int32), -1)
    return _around(_Ring(reduction, chunk, mesh, batch), x_BD, y_BD, scale, bias, numbers)


@dataclasses.dataclass(frozen=True)
class _Ring:
    """What is static: the reduction, and how the batch lies on the mesh (None: on one device)."""

    reduction: Reduction
    chunk: int
    mesh: Mesh | None
    batch: Any

    @property
    def axes(self) -> tuple[str, ...]:
        return logical.mesh_axes(self.batch)

    def on_each_device(self, f: Any, split: str, results: str) -> Any:
        """f over the devices' parts; "r" for each argument or result that is split by rows."""
        if self.mesh is None:
            return f
        specs = [
            tuple(PartitionSpec(self.batch) if kind == "r" else PartitionSpec() for kind in kinds)
            for kinds in (split, results)
        ]
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )

    def onward(self, x: Any) -> Any:
        """To the next device."""
        if self.mesh is None:
            return x
        n = jax.lax.axis_size(self.axes)
        step = [(i, (i + 1) % n) for i in range(n)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, step), x)

    def total(self, x: jax.Array) -> jax.Array:
        """Over the devices."""
        return x if self.mesh is None else jax.lax.psum(x, self.axes)

    def round(self, meet: Any, rows: Any, held: Any, carried: Any) -> tuple[Any, Any]:
        """Rows meet all columns: (rows, carried) afterwards, `carried` at home.

        Args:
          meet: (rows, (held, carried) of a chunk) → (rows, carried of the chunk).
          rows: what is known of the rows.
          held: of the columns, [K, C, …].
          carried: what is gathered of the columns on their way, [K, C, …].
        """
        n = 1 if self.mesh is None else jax.lax.axis_size(self.axes)

        def step(_: int, state: Any) -> Any:
            rows, held, carried = state
            # Nothing in the step needs what arrives, so that it can arrive meanwhile.
            arriving = self.onward(held)
            rows, carried = jax.lax.scan(meet, rows, (held, carried))
            return rows, arriving, self.onward(carried)

        rows, held, carried = jax.lax.fori_loop(0, n - 1, step, (rows, held, carried))
        rows, carried = jax.lax.scan(meet, rows, (held, carried))
        return rows, self.onward(carried)

    def chunks(self, x: jax.Array, fill: float = 0) -> jax.Array:
        """[B, …] → [K, C, …], filled up at the end."""
        B = x.shape[0]
        K = -(-B // self.chunk)
        C = -(-B // K)
        padding = [(0, K * C - B)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding, constant_values=fill).reshape(K, C, *x.shape[1:])


def _whole(chunks: jax.Array, rows: int) -> jax.Array:
    return chunks.reshape(-1, *chunks.shape[2:])[:rows]


def _block(x: jax.Array, y: jax.Array, mine: jax.Array, theirs: jax.Array) -> Any:
    """Products of rows and a chunk of columns, and which of them count."""
    dots = jnp.matmul(x, y.T, precision="highest")
    mine = mine[:, None]
    return dots, (mine >= 0) & (theirs >= 0) & (mine != theirs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(ring: _Ring, x: Any, y: Any, scale: Any, bias: Any, numbers: Any) -> Others:
    return _forward(ring, x, y, scale, bias, numbers)[0]


def _forward(ring: _Ring, *arguments: jax.Array) -> tuple[Others, Any]:
    reduction = ring.reduction

    def one_device(
        x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, numbers: jax.Array
    ) -> tuple[jax.Array, ...]:
        def meet(rows: Any, columns: Any) -> tuple[Any, Any]:
            (y, theirs), carried = columns
            dots, valid = _block(x, y, numbers, theirs)
            logits = dots * scale + bias
            found = jnp.where(valid, logits, EMPTY)

            def joined(so_far: Any, axis: int) -> Any:
                reduced, top = so_far
                reduced = reduction.join(reduced, reduction.of(logits, valid, axis))
                return reduced, jnp.maximum(top, found.max(axis))

            return joined(rows, 1), joined(carried, 0)

        B = x.shape[0]
        held = ring.chunks(y), ring.chunks(numbers, -1)
        nothing = jnp.full(B, reduction.empty), jnp.full(B, EMPTY)
        columns = tuple(map(ring.chunks, nothing))
        rows, columns = ring.round(meet, nothing, held, columns)
        columns = (_whole(a, B) for a in columns)
        return tuple(a for both in zip(rows, columns, strict=True) for a in both)

    run = ring.on_each_device(one_device, "rr--r", "rrrr")
    others = Others(*run(*arguments))
    return others, (*arguments, others.rows, others.columns)


def _backward(ring: _Ring, saved: Any, cotangents: Others) -> tuple[Any, ...]:
    slope = ring.reduction.slope

    def one_device(
        x: jax.Array,
        y: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        numbers: jax.Array,
        rows: jax.Array,
        columns: jax.Array,
        d_rows: jax.Array,
        d_columns: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def meet(so_far: Any, chunk: Any) -> tuple[Any, Any]:
            dx, d_scale, d_bias = so_far
            (y, theirs, columns, d_columns), dy = chunk
            dots, valid = _block(x, y, numbers, theirs)
            logits = dots * scale + bias
            by_row = d_rows[:, None] * slope(logits, rows[:, None])
            by_column = d_columns * slope(logits, columns)
            d_logits = jnp.where(valid, by_row + by_column, 0)
            dx += scale * jnp.matmul(d_logits, y, precision="highest")
            dy += scale * jnp.matmul(d_logits.T, x, precision="highest")
            return (dx, d_scale + jnp.sum(d_logits * dots), d_bias + jnp.sum(d_logits)), dy

        held = (ring.chunks(y), ring.chunks(numbers, -1), *map(ring.chunks, (columns, d_columns)))
        start = jnp.zeros_like(x), jnp.float32(0), jnp.float32(0)
        (dx, d_scale, d_bias), dy = ring.round(meet, start, held, jnp.zeros_like(held[0]))
        return dx, _whole(dy, x.shape[0]), ring.total(d_scale), ring.total(d_bias)

    run = ring.on_each_device(one_device, "rr--rrrrr", "rr--")
    # The largest logits have no gradient.
    return *run(*saved, cotangents.rows, cotangents.columns), None


_around.defvjp(_forward, _backward)
