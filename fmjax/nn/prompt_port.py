"""Where soft prompts plug in (arXiv:2104.08691): P virtual tokens before the tokens of every row.

An adapter has their vectors, `prompt` [P, D], at the table of the words. The entry of the model
puts placeholders before its inputs, the table gives the placeholders their vectors, and what the
model returns of each token is returned of the real ones.

Shapes: B batch, P virtual tokens, T real tokens, D hidden size.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError
from fmjax.nn import virtual_tokens
from fmjax.nn.masks import Mask

LEAF = "prompt"

# Id of the first placeholder; far from anything that could be meant as a token.
_FIRST = -(2**31)


def length(adapter: Mapping[str, Any]) -> int:
    """P of an adapter; 0 without a prompt."""
    return virtual_tokens.count(adapter, LEAF, -2)


def of(model: nn.Module, tokens: int, position_ids: jax.Array | None) -> int:
    """P of the adapter on a bound `model` that is given `tokens` slots.

    Raises:
      ConfigError: prompt and tokens together exceed a table of positions.
    """
    return virtual_tokens.checked(model, "a prompt", LEAF, -2, tokens, position_ids)


def enter(
    P: int, input_ids: jax.Array, positions: jax.Array, mask: Mask, first: int = 0
) -> tuple[jax.Array, jax.Array, Mask]:
    """The inputs with P placeholders before them.

    Args:
      P: number of virtual tokens.
      input_ids: i32 [B, T].
      positions: i32 [B, T] without the prompt; those of real tokens move by P.
      mask: over the real slots.
      first: position of the first virtual token.

    Returns:
      (input_ids i32 [B, P + T], positions i32 [B, P + T], mask over P more slots).
    """
    places = jnp.arange(P, dtype=jnp.int32)
    ids = put_before(P, input_ids, _FIRST + places)
    return ids, put_before(P, positions + P, first + places), more_slots(P, mask)


def put_before(P: int, x: jax.Array, values: Any) -> jax.Array:
    """[B, P + T]: `values`, [P] or a scalar, before every row of x [B, T]."""
    front = jnp.broadcast_to(jnp.asarray(values, x.dtype), (x.shape[0], P))
    return jnp.concatenate([front, x], axis=1)


def more_slots(P: int, mask: Mask) -> Mask:
    """The mask of slots that have the prompt before them; queries begin where they began.

    All texts of a packed row see the prompt, which belongs to none of them.
    """
    segments = mask.segments
    if segments is not None:
        queries, keys = segments
        segments = (put_before(P, queries, -1), put_before(P, keys, -1))
    valid = None if mask.valid is None else put_before(P, mask.valid, True)
    return mask.replace(valid=valid, segments=segments, shared=P)


def vectors(module: nn.Module, ids: jax.Array, y: jax.Array) -> jax.Array:
    """y [..., D] with the prompt's vectors where `ids` [...] are placeholders.

    Args:
      module: the table of the words.
      ids: i32.
      y: what the table has for the ids.

    Raises:
      ConfigError: a prompt for another hidden size.
    """
    if not module.has_variable(COLLECTION, LEAF):
        return y
    prompt = module.get_variable(COLLECTION, LEAF)
    if prompt.ndim != 2 or prompt.shape[1] != y.shape[-1]:
        raise ConfigError(
            f"the prompt at {'/'.join(module.path)!r} has shape {prompt.shape} where the model has "
            f"vectors of size {y.shape[-1]}; use the model that it was made for"
        )
    P = prompt.shape[0]
    virtual = (ids >= _FIRST) & (ids < _FIRST + P)
    rows = jnp.take(prompt.astype(y.dtype), jnp.where(virtual, ids - _FIRST, 0), axis=0)
    return jnp.where(virtual[..., None], rows, y)
