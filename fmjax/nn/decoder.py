"""What all layers of a decoder share: who sees whom, where the cache is, where tokens stand."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.core.token_sums import TokenSums
from fmjax.nn import prefix_port, prompt_port, sequence
from fmjax.nn.decoder_heads import Decoded, Output, put_head
from fmjax.nn.masks import Mask
from fmjax.nn.ports import check_expanded

# A window that reaches over all slots.
_UNLIMITED = int(np.iinfo(np.int32).max)


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

    def with_window(
        self, window: int | jax.Array | None, among: Sequence[int | None] = ()
    ) -> "DecoderContext":
        """The context of a layer with a window of its own; None leaves the shared one.

        Args:
          window: of this layer.
          among: the windows of all layers, one of which an array is.
        """
        if window is None:
            return self
        if isinstance(window, np.integer):
            window = int(window)
        sizes = {_UNLIMITED if w is None else w for w in among}
        mask = self.mask.replace(window=window, windows=tuple(sorted(sizes)))
        return self.replace(mask=mask)


def split_windows(windows: Sequence[int | None]) -> tuple[int | None, np.ndarray | None]:
    """Sliding windows, one a layer (None: sees everything), as what layers share and what not.

    Returns:
      (window, None) where all are the same, else (None, i32 [L]): the `per_layer` of the stack.
    """
    if len(set(windows)) == 1:
        return windows[0], None
    return None, np.array([_UNLIMITED if w is None else w for w in windows], np.int32)


def decoder_context(
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    position_ids: jax.Array | None,
    segment_ids: jax.Array | None,
    cache_index: int | jax.Array | None,
) -> tuple[jax.Array, DecoderContext]:
    """Positions and shared context from a decoder's inputs.

    Args:
      input_ids: i32 [B, T].
      attention_mask: [B, S] or None.
      position_ids: i32 [B, T]; default the slots.
      segment_ids: i32 [B, T] or None; not with a cache.
      cache_index: slot of the first token, or None.

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
        offset=offset,
        valid=valid,
        segments=None if segment_ids is None else (segment_ids, segment_ids),
    )
    if position_ids is None:
        position_ids = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32) + offset, (B, T))
    index = None if cache_index is None or prefill else jnp.asarray(cache_index, jnp.int32)
    return position_ids, DecoderContext(mask=mask, index=index, prefill=prefill)


class DecoderModel(nn.Module):
    """Base of the decoders: what goes in and what head stands on top, stated once.

    A family defines `decode`, which is called inside the compact `__call__` and creates its modules
    there.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: Any
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache_index: int | jax.Array | None = None,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
        token_sums: TokenSums | None = None,
        **options: Any,
    ) -> Output:
        """Runs the decoder and the head.

        Args:
          input_ids: i32 [B, T].
          attention_mask: [B, S], 1 where a slot holds a token. S = T without a cache.
          position_ids: i32 [B, T]; default 0 … T−1 (as in transformers: not from the mask). An
            adapter's prefix comes before position 0.
          segment_ids: i32 [B, T], documents packed into a row (0 is padding).
          cache_index: the slot of the first token in the cache; None runs without one.
          output_hidden_states: return every layer's output too.
          logits_to_keep: compute logits of this many last positions only (of a language model);
            0 means all.
          token_sums: sums over the logits (of a language model) that are wanted in their place.
          **options: of the family's `decode`.

        Returns:
          The output of `config.head`, see `fmjax.nn.outputs` and `put_head`.

        Raises:
          DataError: inputs that do not fit together.
          ConfigError: logits_to_keep or token_sums for another head than the language model's, or
            an adapter that does not fit.
        """
        check_expanded(self)
        positions, ctx = decoder_context(
            input_ids, attention_mask, position_ids, segment_ids, cache_index
        )
        if P := prefix_port.offset(self, input_ids.shape[1], position_ids):
            positions, ctx = positions + P, ctx.replace(mask=ctx.mask.replace(virtual=P))
        ids, mask = input_ids, ctx.mask
        if P := prompt_port.of(self, input_ids.shape[1], position_ids):
            ids, positions, ctx = self._after_prompt(P, input_ids, positions, ctx)
        prompted = ids is not input_ids
        # On a mesh that splits the sequence, tokens stand in another order from here to the head.
        slots = sequence.balanced_slots(ctx.mask, ids.shape[1], cache_index is not None)
        if slots is not None:
            ids, positions = sequence.zigzag(ids), sequence.zigzag(positions)
            ctx = ctx.replace(mask=sequence.balanced(ctx.mask, slots))
        decoded = self.decode(ids, positions, ctx, output_hidden_states, **options)
        if slots is not None:
            decoded = decoded.in_order()
        if prompted:
            decoded = decoded.without(P)
        return put_head(
            self, decoded, input_ids, mask, output_hidden_states, logits_to_keep, token_sums
        )

    def _after_prompt(
        self, P: int, input_ids: jax.Array, positions: jax.Array, ctx: DecoderContext
    ) -> tuple[jax.Array, jax.Array, DecoderContext]:
        """The inputs with an adapter's virtual tokens before them, in the cache too."""
        if ctx.index is None:
            ids, positions, mask = prompt_port.enter(P, input_ids, positions, ctx.mask)
            return ids, positions, ctx.replace(mask=mask)
        if "cache" not in self.variables:
            raise ConfigError(
                "a prompt enters the cache before the first token; begin with cache_index=0"
            )
        mask = prompt_port.more_slots(P, ctx.mask)
        mask = mask.replace(offset=mask.offset + P)
        return input_ids, positions + P, ctx.replace(mask=mask, index=ctx.index + P)

    def decode(
        self, input_ids: jax.Array, positions: jax.Array, ctx: DecoderContext, collect: bool
    ) -> Decoded:
        """The family's own part: embeddings, layers, final norm.

        Args:
          input_ids: i32 [B, T].
          positions: i32 [B, T].
          ctx: mask and cache, as yet without position tables.
          collect: every layer's output is wanted.
        """
        raise TypeError(f"{type(self).__name__} is a base class; build a family's model")

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return {"input_ids": jnp.zeros((1, 2), jnp.int32)}
