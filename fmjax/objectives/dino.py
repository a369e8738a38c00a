"""DINO: crops of an image agree on a distribution over prototypes (arXiv:2104.14294).

Shapes: B images, V large and L small crops of each, K prototypes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.objectives.collapse import teacher_entropies
from fmjax.objectives.image_inputs import forward_images, pixels
from fmjax.objectives.inputs import Batch, Metrics, example_weight, output_field
from fmjax.objectives.self_distillation import (
    SelfDistillation,
    across_views,
    at,
    centered_softmax,
)

HEAD = "WithHead(backbone, ProjectionHead(…))"


@dataclasses.dataclass(frozen=True)
class DINO(SelfDistillation):
    """Cross-entropy of the student on all crops with the teacher on the large ones.

    Pairs of a crop with itself are left out. The teacher's logits are centred by their moving
    average over the global batch, which is updated after the loss. Metrics: loss;
    teacher_entropy and teacher_marginal_entropy, the mean entropy of the targets and the entropy of
    their mean (`fmjax.objectives.collapse.teacher_entropies`).

    Attributes are those of `SelfDistillation`. The published run of ViT-S/16: teacher_temperature
    .04 → .07 over 30 epochs, teacher_momentum .996 → 1, the last layer frozen for one epoch.
    """

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
          apply: of `fmjax.nn.projection.WithHead`; its output has image_embeds [·, K].
          variables: of the student.
          extra: see `SelfDistillation`.
          batch: pixel_values f32 [B, V, H, W, C]; local_pixel_values f32 [B, L, h, w, C], which may
            be missing; example_weight f32 [B].
          rng: key for the student's dropout and drop path; None evaluates, and moves nothing.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, the new extra.

        Raises:
          DataError: pixel values of another shape.
          ConfigError: a single crop, or a model of another output.
        """
        student, teacher = self.networks(variables, extra, training=rng is not None)
        large, small = crops(batch)
        flat = large.reshape(-1, *large.shape[2:])
        V, rows = large.shape[1], example_weight(batch)
        output = forward_images(apply, teacher, flat, None)
        targets = jax.lax.stop_gradient(per_image(output, V))
        logits = student_logits(apply, student, large, small, rng)
        temperature = at(self.teacher_temperature, extra["step"])
        q_BVK = centered_softmax(targets, extra["center"], temperature)
        losses = across_views(q_BVK, logits / self.student_temperature)
        loss_sum, weight = jnp.sum(losses * rows), jnp.sum(rows)
        metrics = {"loss": (loss_sum, weight), **entropies(q_BVK, rows)}
        if rng is None:
            return loss_sum, weight, metrics, extra
        center = self.moved_center(extra["center"], targets, jnp.repeat(rows, V))
        new = {"teacher": teacher, "step": extra["step"] + 1, "center": center}
        return loss_sum, weight, metrics, new


def crops(batch: Batch) -> tuple[jax.Array, jax.Array | None]:
    """(pixel_values [B, V, H, W, C], local_pixel_values [B, L, h, w, C] or None) of a batch.

    Raises:
      DataError: another shape.
      ConfigError: a single crop, which has nothing to agree with.
    """
    large = pixels(batch, axes="B, V, H, W, C")
    small = None
    if "local_pixel_values" in batch:
        small = pixels(batch, "local_pixel_values", "B, L, h, w, C")
    elif large.shape[1] < 2:
        raise ConfigError(
            "a single crop of an image has no other to agree with; use two large ones, or small "
            "ones too (fmjax.data.augment.MultiCrop)"
        )
    return large, small


def per_image(output: Any, crops: int) -> jax.Array:
    """The head's output, f32 [B, crops, K]."""
    x = output_field(output, "image_embeds", 2, HEAD).astype(jnp.float32)
    return x.reshape(-1, crops, x.shape[-1])


def student_logits(
    apply: Callable[..., Any],
    student: Any,
    large: jax.Array,
    small: jax.Array | None,
    rng: jax.Array | None,
) -> jax.Array:
    """The student's on all crops, f32 [B, V + L, K]: one pass for each size."""
    logits = []
    for i, x in enumerate([large] if small is None else [large, small]):
        key = None if rng is None else jax.random.fold_in(rng, i)
        output = forward_images(apply, student, x.reshape(-1, *x.shape[2:]), key)
        logits.append(per_image(output, x.shape[1]))
    return jnp.concatenate(logits, 1)


def entropies(targets_BVK: jax.Array, rows: jax.Array) -> Metrics:
    """How far the teacher is from saying nothing, and from saying always the same."""
    B, V, K = targets_BVK.shape
    each, marginal = teacher_entropies(targets_BVK.reshape(-1, K), jnp.repeat(rows, V))
    weight = jnp.sum(rows)
    return {
        "teacher_entropy": (each * weight, weight),
        "teacher_marginal_entropy": (marginal * weight, weight),
    }
