"""KoLeo: embeddings of a batch keep away from their nearest neighbours (arXiv:1806.03198)."""

import jax
import jax.numpy as jnp

from fmjax.nn.pooling import unit


def koleo_losses(x_BD: jax.Array, weight_B: jax.Array | None = None) -> jax.Array:
    """−log of each row's distance to its nearest neighbour on the sphere.

    The estimator of the differential entropy by Kozachenko and Leonenko, up to a constant, as
    DINOv2 takes it (arXiv:2304.07193). There each device looks among its own rows; here neighbours
    are those of the global batch. Takes the B × B cosines, split over the devices by their rows.

    Args:
      x_BD: embeddings of any length.
      weight_B: rows of weight 0 are nobody's neighbours; default 1.

    Returns:
      f32 [B]; 0 for a row that has no neighbour.
    """
    epsilon = 1e-8
    x = unit(x_BD, epsilon=epsilon)
    cosines = jnp.matmul(x, x.T, precision="highest")
    B = x.shape[0]
    barred = jnp.eye(B, dtype=bool)
    if weight_B is not None:
        barred |= (weight_B == 0)[None]
    alone = jnp.all(barred, -1)
    nearest = jnp.argmax(jax.lax.stop_gradient(jnp.where(barred, -jnp.inf, cosines)), -1)
    # As torch's PairwiseDistance, so that twins have a gradient that is not NaN.
    distance = jnp.linalg.norm(x - x[nearest] + epsilon, axis=-1)
    return jnp.where(alone, 0.0, -jnp.log(distance + epsilon))
