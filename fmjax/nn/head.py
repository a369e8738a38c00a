"""Language-model heads."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.activations import activation
from fmjax.nn.dense import Dense
from fmjax.nn.embed import Embed
from fmjax.nn.norms import LayerNorm
from fmjax.nn.param import param


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


class MaskedLMHead(nn.Module):
    """norm(act(dense(x))) against every row of the word table, plus a bias for each word.

    Attributes:
      act: name of the activation.
      epsilon: of the layer norm.
      kernel_init: of the dense layer.
      execution: precision.
    """

    act: str
    epsilon: float
    kernel_init: Callable[..., jax.Array]
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, words: Embed) -> jax.Array:
        """x [B, T, D], the word table of V rows → f32 logits [B, T, V]."""
        ex = self.execution
        dense = Dense(x_BTD.shape[-1], ("embed", None), True, self.kernel_init, ex, name="dense")
        y = LayerNorm(self.epsilon, ex, name="norm")(activation(self.act)(dense(x_BTD)))
        zeros, shape = nn.initializers.zeros, (words.num,)
        bias = param(self, "bias", zeros, shape, ("vocab",), ex.param_dtype, between=1)
        logits = words.attend(y) + bias.astype(jnp.float32)
        return constrain(logits, ("batch", "seq", "act_vocab"))
