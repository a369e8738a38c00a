"""What all layers of a decoder share: who sees whom, where the cache is, where tokens stand."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import DataError
from fmjax.nn.masks import Mask


@flax.struct.dataclass
class DecoderContext:
    """Passed to every layer of a decoder stack.

    Attributes:
      mask: over the slots that attention will see.
      tables: of the positions (RoPE cos and sin), as the family needs them.
      index: of the first new token in the cache, if it is traced.
      prefill: the cache starts empty and is filled from slot 0.
    """

    mask: Mask
    tables: Any = None
    index: jax.Array | None = None
    prefill: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def cache_index(self) -> int | jax.Array | None:
        """The slot of the first new token: 0 as a Python int in a prefill, None without a cache."""
        return 0 if self.prefill else self.index

    def with_window(self, window: int | jax.Array | None) -> "DecoderContext":
        """The context of a layer with a window of its own; None leaves the shared one."""
        return self if window is None else self.replace(mask=self.mask.replace(window=window))


def split_windows(windows: Sequence[int | None]) -> tuple[int | None, np.ndarray | None]:
    """Sliding windows, one a layer (None: sees everything), as what layers share and what not.

    Returns:
      (window, None) where all are the same, else (None, i32 [L]): the `per_layer` of the stack.
    """
    if len(set(windows)) == 1:
        return windows[0], None
    unlimited = np.iinfo(np.int32).max
    return None, np.array([unlimited if w is None else w for w in windows], np.int32)


def decoder_context(
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    position_ids: jax.Array | None,
    segment_ids: jax.Array | None,
    cache_index: int | jax.Array | None,
    window: int | None = None,
) -> tuple[jax.Array, DecoderContext]:
    """Positions and shared context from a decoder's inputs.

    Args:
      input_ids: i32 [B, T].
      attention_mask: [B, S] or None.
      position_ids: i32 [B, T]; default the slots.
      segment_ids: i32 [B, T] or None; not with a cache.
      cache_index: slot of the first token, or None.
      window: sliding window in slots.

    Returns:
      (positions i32 [B, T], context).

    Raises:
      DataError: shapes that do not fit together.
    """
    B, T = input_ids.shape
    if cache_index is None:
        if attention_mask is not None and attention_mask.shape != (B, T):
            raise DataError(
                f"attention_mask {attention_mask.shape} must have the shape of input_ids {(B, T)}"
            )
    elif attention_mask is None or segment_ids is not None:
        raise DataError(
            "decoding with a cache needs attention_mask [batch, slots] and no segment_ids"
        )
    prefill = isinstance(cache_index, int) and cache_index == 0
    offset = 0 if cache_index is None else cache_index
    valid = None if attention_mask is None else attention_mask.astype(bool)
    mask = Mask(
        window=window,
        offset=offset,
        valid=valid,
        segments=None if segment_ids is None else (segment_ids, segment_ids),
    )
    if position_ids is None:
        position_ids = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32) + offset, (B, T))
    index = None if cache_index is None or prefill else jnp.asarray(cache_index, jnp.int32)
    return position_ids, DecoderContext(mask=mask, index=index, prefill=prefill)
