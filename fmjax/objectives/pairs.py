"""All pairs of two lists of embeddings, reduced to one number a row and one a column.

What contrastive losses need of the matrix of logits is, for each row and each column, one number
that sums up all entries but the own one (its pair's; `fmjax.objectives.pair_reductions`). Here one
of three ways to compute it is chosen, which agree in value and gradient:

local     one matrix of all pairs on every device;
gathered  each device takes its rows against all columns (quadratic in the global batch: B²/n);
ring      the columns go round the devices and are met in chunks (linear: B/n · chunk), see
          `fmjax.objectives.pairs_ring`. On one device it is the same in chunks, without a ring.

Shapes: B pairs of the global batch, D size of an embedding.
"""

import jax
import jax.numpy as jnp

from fmjax.core import logical
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives.pair_reductions import EMPTY, Others, Reduction
from fmjax.objectives.pairs_ring import over_others_around

FORMS = ("auto", "local", "gathered", "ring")

AUTO_BYTES = 64 * 2**20
"""Of the logits on a device, beyond which "auto" takes the ring."""


def over_others(
    reduction: Reduction,
    x_BD: jax.Array,
    y_BD: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    real_B: jax.Array,
    form: str = "auto",
    chunk: int = 1024,
) -> Others:
    """Reduces the logits scale · x yᵀ + bias over all i ≠ j of which both are real.

    In full f32, also on TPUs: scales around 100 amplify rounding.

    Args:
      reduction: `LogSumExp()` or `SoftplusSum()`.
      x_BD: embeddings of the rows.
      y_BD: of the columns; y[i] is the pair of x[i].
      scale, bias: f32[].
      real_B: bool; the others only fill the batch. What comes out for them means nothing.
      form: "auto" is "local" where the batch is not split over devices and "gathered" where it is,
        and "ring" if a device would hold more than 64 MiB of logits.
      chunk: the largest number of columns that meet a device's rows at once, in a ring.

    Returns:
      `Others`, differentiable by x, y, scale and bias.

    Raises:
      ConfigError: an unknown form, or a chunk that is not positive.
      DataError: x and y that are not [B, D] both.
      ShardingError: rows that do not divide over the mesh.
    """
    check_form(form, chunk)
    _check_pairs(x_BD, y_BD)
    x, y, scale, bias = (jnp.asarray(a, jnp.float32) for a in (x_BD, y_BD, scale, bias))
    if form == "auto":
        form = chosen_form(x.shape[0])
    if form == "ring":
        return over_others_around(reduction, x, y, scale, bias, real_B, chunk)
    rows = "batch" if form == "gathered" else None
    x, y = logical.constrain(x, (rows, None)), logical.constrain(y, (None, None))
    dots = jnp.matmul(x, y.T, precision="highest")
    logits = logical.constrain(dots * scale + bias, (rows, None))
    valid = ~jnp.eye(x.shape[0], dtype=bool) & real_B[:, None] & real_B
    found = jax.lax.stop_gradient(jnp.where(valid, logits, EMPTY))
    reduced = (reduction.of(logits, valid, axis) for axis in (1, 0))
    return Others(*(logical.constrain(a, (rows,)) for a in (*reduced, found.max(1), found.max(0))))


def dots(x_BD: jax.Array, y_BD: jax.Array) -> jax.Array:
    """Inner products of the pairs themselves, f32[B].

    Raises:
      DataError: x and y that are not [B, D] both.
    """
    _check_pairs(x_BD, y_BD)
    return jnp.sum(x_BD.astype(jnp.float32) * y_BD.astype(jnp.float32), -1)


def _check_pairs(x: jax.Array, y: jax.Array) -> None:
    if x.ndim != 2 or x.shape != y.shape:
        raise DataError(f"embeddings {x.shape} and {y.shape} are no pairs: both are [rows, size]")


def check_form(form: str, chunk: int) -> None:
    """Refuses what `over_others` does not know.

    Raises:
      ConfigError: an unknown form, or a chunk that is not positive.
    """
    if form not in FORMS:
        raise ConfigError(f"form {form!r} is unknown; one of {', '.join(FORMS)}")
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}; it must be at least 1")


def chosen_form(rows: int) -> str:
    """What "auto" is for a global batch of so many rows, on the mesh of `logical.use`."""
    split = 1 if logical.current() is None else logical.shards("batch")
    if 4 * rows * rows / split > AUTO_BYTES:
        return "ring"
    return "gathered" if split > 1 else "local"
