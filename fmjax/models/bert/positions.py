"""Which rows of the position table tokens stand on."""

import jax
import jax.numpy as jnp

from fmjax.models.bert.config import BertConfig


def default_positions(
    config: BertConfig,
    input_ids: jax.Array,
    segment_ids: jax.Array | None = None,
    prefix: int = 0,
) -> jax.Array:
    """Rows of the position table that tokens stand on, as in transformers.

    BERT counts all slots from 0. RoBERTa counts from pad_token_id + 1 the ids that are not
    pad_token_id; those that are stand at pad_token_id. Each segment of a packed row starts anew.
    An adapter's prefix comes before all that is counted.

    Returns:
      i32 [B, T].
    """
    roberta = config.model_type == "roberta"
    token = input_ids != config.pad_token_id if roberta else jnp.ones_like(input_ids)
    token = token.astype(jnp.int32)
    count = jnp.cumsum(token, 1)
    if segment_ids is not None:
        starts = segment_ids != jnp.roll(segment_ids, 1, 1)
        before = jnp.where(starts.at[:, 0].set(True), count - token, 0)
        count = count - jax.lax.cummax(before, 1)
    count = count + prefix
    return count * token + config.pad_token_id if roberta else count - 1


def first_position(config: BertConfig) -> int:
    """The row of the position table that a text's first token stands on."""
    return config.pad_token_id + 1 if config.model_type == "roberta" else 0
