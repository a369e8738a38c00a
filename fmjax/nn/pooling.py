"""One vector for each text from a model's last hidden state, and vectors of length 1.

Shapes: B batch, T tokens, D hidden size.
"""

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError


def sentence_embeddings(
    last_hidden_state: jax.Array,
    attention_mask: jax.Array | None = None,
    pooling: str = "mean",
    normalize: bool = True,
) -> jax.Array:
    """Sentence embeddings as Sentence-BERT takes them (arXiv:1908.10084).

    Args:
      last_hidden_state: [B, T, D].
      attention_mask: [B, T], 1 where there is a token; None means everywhere.
      pooling: "mean" of the tokens' vectors, "cls": the vector of the first token, or "last": of
        the last one, which alone has seen the whole text in a decoder.
      normalize: to length 1, so that a dot product is the cosine.

    Returns:
      f32 [B, D]. A row without tokens has the mean 0; its first or last slot is taken.

    Raises:
      ConfigError: an unknown pooling.
    """
    x = last_hidden_state.astype(jnp.float32)
    if pooling == "cls":
        vectors = _first(x, attention_mask)
    elif pooling == "last":
        vectors = last_token(x, attention_mask)
    elif pooling == "mean":
        vectors = _mean(x, attention_mask)
    else:
        raise ConfigError(f"pooling {pooling!r} is unknown; choose mean, cls or last")
    if not normalize:
        return vectors
    return unit(vectors)


def unit(x: jax.Array, axis: int = -1, epsilon: float = 1e-12) -> jax.Array:
    """f32 x / max(‖x‖, epsilon), as torch's `normalize`; zeros have a gradient of zero."""
    x = x.astype(jnp.float32)
    # The floor is under the square root, so that a row of zeros has a finite gradient.
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))


def _mean(x_BTD: jax.Array, mask_BT: jax.Array | None) -> jax.Array:
    if mask_BT is None:
        return jnp.mean(x_BTD, 1)
    weights = mask_BT.astype(jnp.float32)[..., None]
    return jnp.sum(x_BTD * weights, 1) / jnp.maximum(jnp.sum(weights, 1), 1e-9)


def _first(x_BTD: jax.Array, mask_BT: jax.Array | None) -> jax.Array:
    """The first token's vector, also of rows that are padded on the left."""
    if mask_BT is None:
        return x_BTD[:, 0]
    first = jnp.argmax(mask_BT != 0, 1)
    return jnp.take_along_axis(x_BTD, first[:, None, None], 1)[:, 0]


def last_token(x_BTD: jax.Array, mask_BT: jax.Array | None) -> jax.Array:
    """The last token's vector [B, D], of rows that are padded on either side.

    Args:
      x_BTD: of any dtype.
      mask_BT: nonzero where there is a token; None means everywhere. A row without tokens gives
        its last slot's.
    """
    if mask_BT is None:
        return x_BTD[:, -1]
    last = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1] != 0, 1)
    return jnp.take_along_axis(x_BTD, last[:, None, None], 1)[:, 0]
