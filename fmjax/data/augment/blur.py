"""Gaussian blur, for each image of a batch by its own width."""

import jax
import jax.numpy as jnp


def blur_matrix(sigma: jax.Array, size: int, radius: int) -> jax.Array:
    """The matrix that blurs one axis: f32 [B] → f32 [B, size, size].

    A Gaussian cut at `radius` pixels and normalised; the border is mirrored, without being
    repeated. As torchvision's `GaussianBlur(2 · radius + 1)`.
    """
    # Mirrored once: a wider filter than the image has no meaning.
    radius = min(radius, size - 1)
    out, x = jnp.arange(size)[:, None], jnp.arange(size)[None]
    variance = jnp.square(sigma)[:, None, None]

    def bell(distance: jax.Array, there: jax.Array | bool = True) -> jax.Array:
        near = (jnp.abs(distance) <= radius) & there
        square = jnp.square(distance.astype(jnp.float32))
        return jnp.where(near, jnp.exp(-0.5 * square / variance), 0)

    # Each pixel also stands at its mirror images beyond either border.
    last = size - 1
    weights = bell(x - out) + bell(-x - out, x > 0) + bell(2 * last - x - out, x < last)
    return weights / jnp.sum(weights, -1, keepdims=True)


def gaussian_blur(x: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Blurs f32 [B, H, W, C] by a Gaussian of `sigma` f32 [B] pixels, cut at `radius`."""
    _, H, W, _ = x.shape
    x = jnp.einsum("bph,bhwc->bpwc", blur_matrix(sigma, H, radius), x, precision="highest")
    return jnp.einsum("bqw,bpwc->bpqc", blur_matrix(sigma, W, radius), x, precision="highest")
