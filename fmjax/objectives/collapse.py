"""Whether representations collapse: figures to watch while a model learns without labels.

A loss can fall while all pictures are mapped to one point, to a few directions, or (with a teacher)
to one class or to the uniform distribution. These functions say so; none has a gradient. On a mesh
they are over the global batch.

Shapes: B examples, D size of an embedding, K classes or prototypes of a teacher.
"""

import jax
import jax.numpy as jnp


def embedding_rank(x_BD: jax.Array, weight_B: jax.Array | None = None) -> jax.Array:
    """Effective rank: exp of the entropy of the singular values' shares (RankMe, arXiv:2210.02885).

    Takes the singular values of a D × D matrix: for evaluations, not for every step.

    Args:
      x_BD: embeddings, as they are: neither centred nor scaled.
      weight_B: f32, 0 for rows that only fill the batch; default 1.

    Returns:
      f32 [], between 1 (all on a line through the origin) and min(B, D).
    """
    x, _ = _rows(x_BD, weight_B)
    # Not by the eigenvalues of xᵀx: beside the square of a common mean's length rounding swallows
    # all that is below a hundredth of it.
    with jax.default_matmul_precision("highest"):
        small = jnp.linalg.qr(x, mode="r") if x.shape[0] > x.shape[1] else x
        values = jnp.linalg.svd(small, compute_uv=False)
    # What rounding leaves of a zero is not a singular value.
    floor = jnp.max(values) * max(x.shape) * jnp.finfo(jnp.float32).eps
    values = jnp.where(values > floor, values, 0)
    return jnp.exp(entropy(values / jnp.maximum(jnp.sum(values), 1e-30)))


def centre_norm(x_BD: jax.Array, weight_B: jax.Array | None = None) -> jax.Array:
    """Length of the mean of the embeddings, each brought to length 1; f32 [].

    1 where all are one; about 1/√B where directions are spread evenly.
    """
    x, weight = _rows(_directions(x_BD), weight_B)
    return jnp.linalg.norm(jnp.sum(x, 0) / _total(weight))


def embedding_spread(x_BD: jax.Array, weight_B: jax.Array | None = None) -> jax.Array:
    """√D · mean over coordinates of their standard deviation, of length 1 (arXiv:2011.10566).

    f32 []: 0 where all are one, about 1 where directions are spread evenly.
    """
    x = _directions(x_BD)
    _, weight = _rows(x, weight_B)
    share = (weight / _total(weight))[:, None]
    centred = x - jnp.sum(x * share, 0)
    return jnp.sqrt(x.shape[1]) * jnp.mean(jnp.sqrt(jnp.sum(centred**2 * share, 0)))


def teacher_entropies(
    probabilities_BK: jax.Array, weight_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Of a teacher's distributions: the mean of their entropies, and the entropy of their mean.

    In nats, f32 []. The first near ln K: the teacher says nothing (uniform). The second near 0: all
    examples are one class. Healthy is a small first and a large second.
    """
    p, weight = _rows(probabilities_BK, weight_B)
    total = _total(weight)
    each = entropy(jax.lax.stop_gradient(probabilities_BK).astype(jnp.float32))
    return jnp.sum(each * weight) / total, entropy(jnp.sum(p, 0) / total)


def entropy(p: jax.Array) -> jax.Array:
    """−Σ p ln p over the last axis, in nats; 0 ln 0 is 0."""
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), -1)


def _rows(x: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The rows times their weights (their shares of sums), and the weights; f32."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    weight = jnp.ones(x.shape[0]) if weight is None else weight
    weight = jax.lax.stop_gradient(weight).astype(jnp.float32)
    return x * weight[:, None], weight


def _total(weight: jax.Array) -> jax.Array:
    """Sum of the weights; of a batch that is all filling as good as nothing, and not nothing."""
    return jnp.maximum(jnp.sum(weight), 1e-30)


def _directions(x: jax.Array) -> jax.Array:
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
