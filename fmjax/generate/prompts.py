"""Prompts of unequal length in one array of few different shapes."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import DataError


@flax.struct.dataclass
class Prompts:
    """B prompts, left-padded: each ends in the last of P slots, where its continuation begins.

    Attributes:
      ids: i32 [B, P].
      lengths: i32 [B], tokens of each row, at least 1.
    """

    ids: jax.Array
    lengths: jax.Array

    def valid(self, slots: int) -> jax.Array:
        """i32 [B, slots], 1 where a slot holds a token or, beyond P, may come to hold one."""
        first_B1 = self.ids.shape[1] - self.lengths[:, None]
        return (jnp.arange(slots)[None] >= first_B1).astype(jnp.int32)

    def positions(self) -> jax.Array:
        """i32 [B, P], counted from each row's first token; 0 in the padding."""
        slots_1P = jnp.arange(self.ids.shape[1], dtype=jnp.int32)[None]
        return jnp.maximum(slots_1P - (self.ids.shape[1] - self.lengths[:, None]), 0)


def bucket(n: int) -> int:
    """`n` rounded up to a multiple of 16, and beyond 128 to one of four sizes an octave.

    One program is compiled for all lengths in a bucket; beyond 64 less than a fifth of its slots
    is waste.
    """
    step = max(16, (1 << (n - 1).bit_length()) // 8)
    return -(-n // step) * step


def token_rows(
    input_ids: Any, attention_mask: Any, vocab_size: int, bos_token_id: int | None
) -> list[np.ndarray]:
    """Each prompt's own tokens, checked.

    Args:
      input_ids: rows of ids of any lengths, or an integer array [B, T].
      attention_mask: 0/1 [B, T], which tokens of an array count; None counts all.
      vocab_size: every id is below it.
      bos_token_id: stands for an empty prompt.

    Raises:
      DataError: anything else; the message names the row.
    """
    if isinstance(input_ids, str) or getattr(input_ids, "ndim", 2) != 2:
        raise DataError("input_ids must be rows of token ids [batch, length]; encode texts first")
    if attention_mask is not None:
        mask = np.asarray(attention_mask)
        if getattr(input_ids, "ndim", None) != 2 or mask.shape != input_ids.shape:
            raise DataError(
                f"attention_mask {mask.shape} needs input_ids as an array of the same shape; "
                "rows of unequal length need no mask"
            )
        input_ids = [row[m != 0] for row, m in zip(np.asarray(input_ids), mask, strict=True)]
    rows = [_row(i, row, vocab_size, bos_token_id) for i, row in enumerate(input_ids)]
    if not rows:
        raise DataError("input_ids has no rows; give at least one prompt")
    return rows


def _row(number: int, row: Any, vocab_size: int, bos_token_id: int | None) -> np.ndarray:
    if np.size(row) == 0:
        if bos_token_id is None:
            raise DataError(
                f"prompt {number} is empty and the model has no BOS token to start from; "
                "give at least one token, or bos_token_id"
            )
        row = [bos_token_id]
    ids = np.asarray(row)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"prompt {number} is not a row of integer token ids (dtype {ids.dtype}, "
            f"{ids.ndim} dimensions); give [[…], …]"
        )
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise DataError(
            f"prompt {number} has token id {outside[0]}, outside the model's vocabulary of "
            f"{vocab_size}; encode it with the model's own tokenizer"
        )
    return ids.astype(np.int32)


def left_pad(rows: Sequence[np.ndarray], pad_token_id: int) -> Prompts:
    """The rows as `Prompts` whose P is a `bucket` size."""
    slots = bucket(max(map(len, rows)))
    ids = np.full((len(rows), slots), pad_token_id, np.int32)
    for i, row in enumerate(rows):
        ids[i, slots - len(row) :] = row
    return Prompts(ids=ids, lengths=np.array([len(row) for row in rows], np.int32))
