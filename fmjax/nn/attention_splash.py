"""Splash attention, JAX's Pallas kernel for TPUs (`jax.experimental.pallas.ops.tpu`).

Like flash attention (arXiv:2307.08691) it holds a block of scores at a time, and it knows causal
and local masks without reading them. Padding and packed texts become segment ids. On CPUs it runs
in Pallas' interpreter, for tests.

Shapes: B batch, H query heads, G key–value heads, T queries, S keys, K head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib

from fmjax.nn.masks import Mask

# The segment of padding, where no text's number is.
_PADDING = np.iinfo(np.int32).min
_LANES = 128


def block_size(length: int, head_dim: int) -> int:
    """Of queries or keys: the largest of 1024 … 128 that pads the length by an eighth at most.

    Larger blocks read keys and values less often; those of large heads must fit the memory of the
    core beside them.
    """
    for size in (1024, 512, 256):
        if size * head_dim <= 1024 * 128 and -length % size <= length // 8:
            return size
    return _LANES


def splash(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: Mask,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention as `fmjax.nn.attention` defines it, on one device; q is scaled already.

    The mask is one that `fmjax.nn.attention_choice.refusal` lets pass. Output and logsumexp bear
    the name "attention": a remat policy that saves it does not run the kernel again. Queries that
    are padding see the padding, or give a mean: nothing is to be made of them.

    Returns:
      [B, T, H · K].
    """
    if isinstance(mask.window, jax.Array):
        # Layers of a scanned stack differ in their windows: a kernel for each size.
        run = functools.partial(splash, softcap=softcap, interpret=interpret)
        kernels = [
            lambda *a, w=w: run(*a, mask.replace(window=w, windows=())) for w in mask.windows
        ]
        which = jnp.searchsorted(jnp.asarray(mask.windows), mask.window)
        return jax.lax.switch(which, kernels, q_BHTK, k_BGSK, v_BGSK)
    B, H, T, K = q_BHTK.shape
    S = k_BGSK.shape[2]
    bq, bk = block_size(T, K), block_size(S, K)
    more_q, more_k = -T % bq, -S % bk
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
        for x, more in ((q_BHTK, more_q), (k_BGSK, more_k), (v_BGSK, more_k))
    )
    ids = _segment_ids(B, T, S, mask, bool(more_k))
    if ids is not None:
        ends = ((ids[0], more_q), (ids[1], more_k))
        ids = splash_lib.SegmentIds(
            *(jnp.pad(x, ((0, 0), (0, n)), constant_values=_PADDING) for x, n in ends)
        )
    window = None if mask.window is not None and mask.window >= S else mask.window
    kernel = _kernel(
        H,
        T + more_q,
        S + more_k,
        bq,
        bk,
        mask.virtual + mask.offset,
        mask.causal,
        window,
        softcap,
        interpret,
    )
    out = jax.vmap(kernel)(q, k, v, ids)[:, :, :T]
    return jnp.swapaxes(out, 1, 2).reshape(B, T, H * K)


def _segment_ids(
    B: int, T: int, S: int, mask: Mask, padded: bool
) -> tuple[jax.Array, jax.Array] | None:
    """i32 [B, T] of the queries and [B, S] of the keys, or None where nothing asks for them."""
    P = mask.virtual
    # Keys that only fill up the last block come after all that causal queries see.
    behind = mask.causal and S >= T + P + mask.offset
    if mask.valid is None and mask.segments is None and (behind or not padded):
        return None
    q, k = mask.segments or (jnp.ones((B, T), jnp.int32), jnp.ones((B, S), jnp.int32))
    if mask.valid is not None:
        valid = jnp.pad(mask.valid[:, : S - P], ((0, 0), (P, 0)), constant_values=True)
        k = jnp.where(valid, k, _PADDING)
        if mask.causal:
            # Queries stand in the slots of the keys; each sees at least itself.
            q = jnp.where(valid[:, P + mask.offset :][:, :T], q, _PADDING)
    return q.astype(jnp.int32), k.astype(jnp.int32)


@functools.lru_cache(maxsize=64)
def _kernel(
    heads: int,
    queries: int,
    keys: int,
    bq: int,
    bk: int,
    offset: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> splash_lib.SplashAttentionKernel:
    """One kernel for each shape, whose tables of blocks are constants of the program."""
    shape = (queries, keys)
    if window is not None:
        one = mask_lib.LocalMask(shape, (window - 1, 0 if causal else None), offset)
    elif causal:
        one = mask_lib.CausalMask(shape, offset)
    else:
        one = mask_lib.FullMask(shape)
    sizes = splash_lib.BlockSizes(
        block_q=bq,
        block_kv=bk,
        block_kv_compute=min(bk, 512),
        block_q_dkv=bq,
        block_kv_dkv=bk,
        block_kv_dkv_compute=min(bk, 512),
        block_q_dq=bq,
        block_kv_dq=bk,
    )
    with jax.core.eval_context():
        kernel = splash_lib.make_splash_mha(
            mask_lib.MultiHeadMask([one] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)
