"""Language-model heads."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.core.token_sums import TokenSums
from fmjax.nn.activations import activation
from fmjax.nn.chunked_head import Sums, part_length, sum_tokens
from fmjax.nn.dense import Dense
from fmjax.nn.embed import Embed
from fmjax.nn.norms import LayerNorm
from fmjax.nn.param import param
from fmjax.quant import Packed


def lm_head(
    x_BTD: jax.Array,
    vocab_size: int,
    tied: Embed | None,
    kernel_init: Callable[..., jax.Array],
    execution: Execution,
    keep: int = 0,
    softcap: float | None = None,
    token_sums: TokenSums | None = None,
) -> tuple[jax.Array | None, Sums | None]:
    """Logits over the vocabulary, or sums over them; call it inside a compact `__call__`.

    Args:
      x_BTD: the last hidden state.
      vocab_size: V.
      tied: the embedding table that also serves as the head; None makes a Dense "lm_head".
      kernel_init: of that Dense.
      execution: precision.
      keep: only of this many last positions; 0 means all.
      softcap: bound c of the logits, x → c · tanh(x / c); None leaves them.
      token_sums: sums that are wanted in place of the logits.

    Returns:
      (f32 [B, T or keep, V], None), or (None, the sums) where the logits are taken part by part.
    """
    head = tied
    if tied is None:
        head = Dense(
            vocab_size,
            ("embed", "vocab"),
            kernel_init=kernel_init,
            execution=execution,
            out_dtype=jnp.float32,
            name="lm_head",
        )

    def logits(head: Embed | Dense, x: jax.Array) -> jax.Array:
        y = head(x) if tied is None else head.attend(x)
        y = y if softcap is None else softcap * jnp.tanh(y / softcap)
        return constrain(y, ("batch", "seq", "act_vocab"))

    if token_sums is None or head.is_initializing():
        return logits(head, x_BTD[:, -keep:]), None
    length = part_length(x_BTD.shape[:2], vocab_size, token_sums.chunk)
    if not length:
        return logits(head, x_BTD), None
    return None, _sums(head, logits, x_BTD, token_sums, length)


def _sums(
    head: Embed | Dense,
    logits: Callable[[Embed | Dense, jax.Array], jax.Array],
    x_BTD: jax.Array,
    token_sums: TokenSums,
    length: int,
) -> Sums:
    """What `token_sums` asks for, of the logits that a bound module gives for x."""
    own, variables = head.unbind()
    variables = {
        name: dict(variables[name]) for name in ("params", COLLECTION) if name in variables
    }
    random = COLLECTION in variables and head.has_rng("dropout")
    key = head.make_rng("dropout") if random else None
    weights = {"embedding", "kernel"} & set(variables["params"])
    if COLLECTION not in variables:
        # Once, not for every part; adapters may need more of the weights than their product.
        for name in weights:
            variables["params"][name] = _cast(variables["params"][name], head.execution.dtype)
    shapes = {variables["params"][name].shape for name in weights}

    def apply(variables: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        return own.apply(variables, x, rngs=rngs, method=logits)

    def lay_out(x: jax.Array) -> jax.Array:
        return constrain(x, head.axes) if x.shape in shapes else x

    return sum_tokens(apply, variables, key, x_BTD, token_sums, length, lay_out)


def _cast(weight: jax.Array | Packed, dtype: jnp.dtype) -> jax.Array | Packed:
    return weight if isinstance(weight, Packed) else weight.astype(dtype)


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
