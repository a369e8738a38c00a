"""DINOv2: DINO on crops, iBOT on masked patches, and KoLeo (arXiv:2304.07193).

Shapes: B images, V large and L small crops of each, R = B · V, N patches of a large crop, K
prototypes; G, M see `fmjax.objectives.ibot`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fmjax.core import tree
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives.dino import HEAD, crops, entropies, per_image
from fmjax.objectives.ibot import ibot_loss, masked_patches
from fmjax.objectives.image_inputs import forward_images
from fmjax.objectives.inputs import Batch, Metrics, example_weight, output_field
from fmjax.objectives.koleo import koleo_losses
from fmjax.objectives.self_distillation import (
    SelfDistillation,
    across_views,
    at,
    centered_softmax,
    prototypes,
)
from fmjax.objectives.sinkhorn import sinkhorn


@dataclasses.dataclass(frozen=True)
class DINOv2(SelfDistillation):
    """dino_weight · DINO + ibot_weight · iBOT + koleo_weight · Σ over large crops of KoLeo.

    The student sees the large crops with patches masked, the teacher without. Metrics: loss, its
    parts dino, ibot and koleo, masked_dropped (the number of masked patches in a batch that were
    left out), and the teacher's entropies as of `DINO`.

    Attributes:
      targets: what makes the teacher's targets: "sinkhorn" over the global batch, as in the
        published runs, or "center", as in DINO, with a center for the patches too.
      dino_weight, ibot_weight, koleo_weight: of the parts.
      capacity: share of the patches whose logits are computed, see `masked_patches`. A half of
        the crops, masked by .1 to .5, takes .15 in the mean; .25 leaves room for chance.
      Others: of `SelfDistillation`.

    Raises:
      ConfigError: unknown targets, or numbers out of range.
    """

    teacher_momentum: Any = 0.994
    targets: Literal["sinkhorn", "center"] = "sinkhorn"
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    capacity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets not in ("sinkhorn", "center"):
            raise ConfigError(f"targets={self.targets!r} is unknown; use 'sinkhorn' or 'center'")
        if not 0 < self.capacity <= 1:
            raise ConfigError(f"capacity={self.capacity} must be in (0, 1]")
        if min(self.dino_weight, self.ibot_weight, self.koleo_weight) < 0:
            raise ConfigError("dino_weight, ibot_weight and koleo_weight must not be negative")

    def init(self, variables: Any) -> dict[str, Any]:
        """As `SelfDistillation`, and the center of the patches."""
        separate = "params/patch_head/last_layer/kernel" in tree.flatten(variables)
        K = prototypes(variables, "patch_head" if separate else "head")
        return {**super().init(variables), "patch_center": jnp.zeros(K, jnp.float32)}

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the images' losses, and of their weights.

        Args:
          apply: of `fmjax.nn.projection.WithHead`, whose backbone takes bool_masked_pos.
          variables: of the student.
          extra: see `SelfDistillation`; "patch_center" with `targets` "center".
          batch: pixel_values f32 [B, V, H, W, C]; bool_masked_pos bool [B, V, N];
            local_pixel_values f32 [B, L, h, w, C], which may be missing; example_weight f32 [B].
          rng: key for the student's dropout and drop path; None evaluates, and moves nothing.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, the new extra.

        Raises:
          DataError: arrays of another shape.
          ConfigError: a single crop, or a model of another output.
        """
        student, teacher = self.networks(variables, extra, training=rng is not None)
        large, small = crops(batch)
        B, V = large.shape[:2]
        rows = example_weight(batch)
        crop_rows = jnp.repeat(rows, V)
        mask = _masks(batch, B, V)
        index, share, dropped = masked_patches(mask, crop_rows, self.capacity)
        flat = large.reshape(-1, *large.shape[2:])
        seen = forward_images(apply, teacher, flat, None, patch_index=index)
        told = forward_images(apply, student, flat, rng, patch_index=index, bool_masked_pos=mask)
        seen_BVK, logits_BVK = (per_image(output, V) for output in (seen, told))
        if small is not None:
            key = None if rng is None else jax.random.fold_in(rng, 1)
            output = forward_images(apply, student, small.reshape(-1, *small.shape[2:]), key)
            logits_BVK = jnp.concatenate([logits_BVK, per_image(output, small.shape[1])], 1)

        q_BVK = self._targets(seen_BVK, extra, "center", jnp.broadcast_to(rows[:, None], (B, V)))
        q_GMK = self._targets(_patches(seen), extra, "patch_center", share)
        weight = jnp.sum(rows)
        features = output_field(told, "pooler_output", 2, HEAD).reshape(B, V, -1)
        parts = {
            "dino": jnp.sum(across_views(q_BVK, logits_BVK / self.student_temperature) * rows),
            "ibot": ibot_loss(q_GMK, _patches(told) / self.student_temperature, share) / V,
            "koleo": sum(jnp.sum(koleo_losses(features[:, v], rows) * rows) for v in range(V)),
        }
        loss_sum = sum(getattr(self, f"{name}_weight") * part for name, part in parts.items())
        metrics = {name: (part, weight) for name, part in {"loss": loss_sum, **parts}.items()}
        metrics |= {"masked_dropped": (dropped, jnp.float32(1)), **entropies(q_BVK, rows)}
        if rng is None:
            return loss_sum, weight, metrics, extra
        new = {**extra, "teacher": teacher, "step": extra["step"] + 1}
        if self.targets == "center":
            new["center"] = self.moved_center(extra["center"], seen_BVK, crop_rows)
            counted = (share != 0).astype(jnp.float32)
            new["patch_center"] = self.moved_center(extra["patch_center"], _patches(seen), counted)
        return loss_sum, weight, metrics, jax.lax.stop_gradient(new)

    def _targets(self, logits: jax.Array, extra: Any, center: str, weights: jax.Array) -> jax.Array:
        """The teacher's distributions, f32 [..., K], of rows with weights [...]."""
        temperature = at(self.teacher_temperature, extra["step"])
        logits = jax.lax.stop_gradient(logits)
        if self.targets == "sinkhorn":
            return sinkhorn(logits, temperature, weights)
        return centered_softmax(logits, extra[center], temperature)


def _patches(output: Any) -> jax.Array:
    return output_field(output, "patch_embeds", 3, HEAD).astype(jnp.float32)


def _masks(batch: Batch, B: int, V: int) -> jax.Array:
    """bool_masked_pos as [B · V, N].

    Raises:
      DataError: it is missing, or not bool [B, V, N].
    """
    mask = batch.get("bool_masked_pos")
    if mask is None or mask.ndim != 3 or mask.shape[:2] != (B, V) or mask.dtype != bool:
        got = "missing" if mask is None else f"{mask.dtype} of shape {mask.shape}"
        raise DataError(
            f"bool_masked_pos is {got}; it must be bool of shape ({B}, {V}, patches), see "
            "fmjax.data.augment.block_masks"
        )
    return mask.reshape(B * V, -1)
