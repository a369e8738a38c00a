"""Softmax cross-entropy over a vocabulary, with the least memory that its gradient needs."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def nll_and_logsumexp(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each label, and the log-partition that it was normalised by.

    The forward pass keeps the logits and one logsumexp a token; the backward pass writes
    softmax − onehot once, in the dtype of the logits. Logits sharded over the vocabulary stay where
    they are: the devices exchange [...] shaped partial results only.

    Args:
      logits: float[..., V], any float dtype; the arithmetic is float32.
      labels: int[...] in [0, V). A negative label (-100) counts as 0 in the value and as no class
        in the gradient: give such positions weight zero.

    Returns:
      nll f32[...] in nats, logsumexp f32[...].
    """
    x = logits.astype(jnp.float32)
    top = jnp.max(x, -1, keepdims=True)
    logsumexp = jnp.log(jnp.sum(jnp.exp(x - top), -1)) + top[..., 0]
    return logsumexp - picked(logits, labels), logsumexp


def picked(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label: float[..., V], int[...] → f32[...]."""
    ids = jnp.maximum(labels, 0)[..., None]
    return jnp.take_along_axis(logits, ids, -1)[..., 0].astype(jnp.float32)


def _forward(logits: jax.Array, labels: jax.Array):
    nll, logsumexp = nll_and_logsumexp(logits, labels)
    return (nll, logsumexp), (logits, labels, logsumexp)


def _backward(residuals, cotangents):
    logits, labels, logsumexp = residuals
    d_nll, d_logsumexp = (g[..., None] for g in cotangents)
    probs = jnp.exp(logits.astype(jnp.float32) - logsumexp[..., None])
    ids = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    grad = (d_nll + d_logsumexp) * probs - jnp.where(ids == labels[..., None], d_nll, 0)
    return grad.astype(logits.dtype), None


nll_and_logsumexp.defvjp(_forward, _backward)


def is_top(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether each label alone has the highest logit: float[..., V], int[...] → bool[...].

    An argmax that shards over the vocabulary; a tie counts as wrong.
    """
    score = picked(logits, labels)[..., None]
    return jnp.sum(logits.astype(jnp.float32) >= score, -1) == 1
