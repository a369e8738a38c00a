"""iBOT: masked patches tell what the teacher sees there (arXiv:2111.07832).

Shapes: R images, N patches of each, G groups of images (one for each part of the batch that a mesh
makes), M patches of a group, K prototypes.
"""

import math

import jax
import jax.numpy as jnp

from fmjax.core import logical
from fmjax.objectives.self_distillation import cross_entropy


def masked_patches(
    mask_RN: jax.Array, rows_R: jax.Array, capacity: float = 1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Picks the masked patches, as many as there is room for, without moving them over a mesh.

    Args:
      mask_RN: bool, True is masked.
      rows_R: f32, weights of the images; patches of those of weight 0 take no room.
      capacity: share of the patches of a group that there is room for; they are projected whether
        they are masked or not, and logits are most of what iBOT holds in memory.

    Returns:
      index i32 [G, M] into the N · R / G patches of a group; weight f32 [G, M], of masked patches
      their image's over the number of its masked patches, of others 0; dropped f32 [], masked
      patches that there was no room for.
    """
    R, N = mask_RN.shape
    groups = logical.shards("batch") if logical.current() else 1
    groups = groups if R % groups == 0 else 1
    places = R // groups * N
    room = min(max(math.ceil(capacity * places), 1), places)
    share_RN = mask_RN / jnp.maximum(jnp.sum(mask_RN, -1, keepdims=True), 1) * rows_R[:, None]
    share = share_RN.reshape(groups, places)
    masked = share != 0
    # The masked ones first, in their order.
    index = jnp.argsort(~masked, axis=-1, stable=True)[:, :room]
    weight = jnp.take_along_axis(share, index, -1)
    dropped = jnp.sum(masked) - jnp.sum(weight != 0)
    return index, weight.astype(jnp.float32), dropped.astype(jnp.float32)


def ibot_loss(targets_GMK: jax.Array, logits_GMK: jax.Array, weight_GM: jax.Array) -> jax.Array:
    """Sum over images of the mean cross-entropy of their masked patches, f32 [].

    Images without masked patches add 0, but count where it is divided by the number of images.

    Args:
      targets_GMK: f32, the teacher's distributions for the patches that it sees.
      logits_GMK: f32, the student's for the same, masked, divided by their temperature.
      weight_GM: of `masked_patches`.
    """
    return jnp.sum(cross_entropy(targets_GMK, logits_GMK) * weight_GM)
