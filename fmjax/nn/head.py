"""The language-model head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.dense import Dense
from fmjax.nn.embed import Embed


def lm_head(
    x_BTD: jax.Array,
    vocab_size: int,
    tied: Embed | None,
    kernel_init: Callable[..., jax.Array],
    execution: Execution,
    keep: int = 0,
    softcap: float | None = None,
) -> jax.Array:
    """Logits over the vocabulary; call it inside the model's compact `__call__`.

    Args:
      x_BTD: the last hidden state.
      vocab_size: V.
      tied: the embedding table that also serves as the head; None makes a Dense "lm_head".
      kernel_init: of that Dense.
      execution: precision.
      keep: only of this many last positions; 0 means all.
      softcap: bound c of the logits, x → c · tanh(x / c); None leaves them.

    Returns:
      f32 [B, T or keep, V].
    """
    x = x_BTD[:, -keep:]
    if tied is not None:
        logits = tied.attend(x)
    else:
        logits = Dense(
            vocab_size,
            ("embed", "vocab"),
            kernel_init=kernel_init,
            execution=execution,
            out_dtype=jnp.float32,
            name="lm_head",
        )(x)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return constrain(logits, ("batch", "seq", "act_vocab"))
