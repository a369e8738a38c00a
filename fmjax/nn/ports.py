"""Where adapters plug into the primitives.

An adapter lives in the collection "adapter", at the path of the module that it touches. A module
without an entry there computes what it always computed; no model file knows about adapters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION
from fmjax.nn import bank_port
from fmjax.nn.dropout import dropout


def _get(module: nn.Module, name: str) -> jax.Array | None:
    return module.get_variable(COLLECTION, name) if module.has_variable(COLLECTION, name) else None


def low_rank(module: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """y + scale · (dropout(x) A) B, the LoRA branch of a dense layer (arXiv:2106.09685).

    Args:
      module: the dense layer; its adapter holds lora_a [in, r], lora_b [r, *out], lora_scale [] and
        optionally lora_dropout [] (a rate).
      x: the layer's input [..., in].
      y: the layer's output [..., *out].
    """
    a = _get(module, "lora_a")
    if a is None:
        return y
    if bank_port.rows(module) is not None:
        return bank_port.low_rank(module, x, y)
    b, scale = _get(module, "lora_b"), _get(module, "lora_scale")
    rate = _get(module, "lora_dropout")
    if rate is not None:
        x = dropout(module, x, rate)
    low = jnp.tensordot(x.astype(y.dtype), a.astype(y.dtype), 1) * scale.astype(y.dtype)
    return y + jnp.tensordot(low, b.astype(y.dtype), 1)


def low_rank_embedding(module: nn.Module, ids: jax.Array, y: jax.Array) -> jax.Array:
    """y + scale · A[ids] B, the LoRA branch of an embedding table: A [V, r], B [r, D]."""
    a = _get(module, "lora_a")
    if a is None:
        return y
    if bank_port.rows(module) is not None:
        return bank_port.low_rank_embedding(module, ids, y)
    b, scale = _get(module, "lora_b"), _get(module, "lora_scale")
    low = jnp.take(a, ids, axis=0).astype(y.dtype) * scale.astype(y.dtype)
    return y + jnp.tensordot(low, b.astype(y.dtype), 1)
