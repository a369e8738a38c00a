"""How the logits of a row, or of a column, become one number.

Shapes: B pairs of the global batch.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

EMPTY = -1e30
"""Stands for −∞, whose differences are not NaN."""


class Reduction(Protocol):
    """How the entries of a row or column become one number; static and hashable."""

    empty: float

    def of(self, logits: jax.Array, valid: jax.Array, axis: int) -> jax.Array:
        """Of the valid entries along an axis."""

    def join(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Of two sets of entries, from what each gives."""

    def slope(self, logits: jax.Array, reduced: jax.Array) -> jax.Array:
        """Derivative of the reduced number by each (valid) entry."""


class LogSumExp(NamedTuple):
    """log Σ exp: the partition of a softmax."""

    empty: float = EMPTY

    def of(self, logits: jax.Array, valid: jax.Array, axis: int) -> jax.Array:
        """Of the valid entries along an axis; about `EMPTY` where there are none."""
        return jax.nn.logsumexp(jnp.where(valid, logits, EMPTY), axis=axis)

    def join(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """log(exp a + exp b)."""
        return jnp.logaddexp(a, b)

    def slope(self, logits: jax.Array, reduced: jax.Array) -> jax.Array:
        """The softmax."""
        return jnp.exp(logits - reduced)


class SoftplusSum(NamedTuple):
    """Σ log(1 + exp): the losses of entries that should be negative."""

    empty: float = 0.0

    def of(self, logits: jax.Array, valid: jax.Array, axis: int) -> jax.Array:
        """Of the valid entries along an axis."""
        return jnp.sum(jnp.where(valid, jax.nn.softplus(logits), 0), axis)

    def join(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a + b."""
        return a + b

    def slope(self, logits: jax.Array, reduced: jax.Array) -> jax.Array:
        """The logistic function."""
        return jax.nn.sigmoid(logits)


class Others(NamedTuple):
    """What each row and each column has besides its own pair, f32[B] each.

    Attributes:
      rows, columns: reduced logits.
      row_top, column_top: the largest logit; without gradient.
    """

    rows: jax.Array
    columns: jax.Array
    row_top: jax.Array
    column_top: jax.Array
