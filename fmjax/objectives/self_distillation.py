"""Learning from an average of oneself: what DINO and DINOv2 share.

Shapes: B images, V large and L small crops of each, K prototypes.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.objectives.inputs import OverExamples

Schedule = float | Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class SelfDistillation(OverExamples):
    """A teacher that is the average of the student, and the schedules of both.

    The state between steps (`extra`): "teacher", all variables in float32; "step", counted here as
    skipped updates do not count; "center". Before step t's loss the teacher moves towards the
    student that step t − 1 left, with momentum(t − 1): what is compared at step t are the networks
    of the reference, which moves the teacher at the end of a step. The batch is taken as a whole,
    and cannot be accumulated. Parameters are those of `fmjax.nn.projection.WithHead`; the ones to
    export are `extra["teacher"]["params"]["backbone"]`.

    Attributes:
      student_temperature: divides the student's logits.
      teacher_temperature: the teacher's, or its schedule: a function of the step
        (`fmjax.train.schedules.ramp`).
      teacher_momentum: of the average, or its schedule (`fmjax.train.schedules.cosine`).
      center_momentum: of the average of the teacher's logits that is subtracted from them.
      freeze_last_layer: steps at the start in which the prototypes do not learn: an epoch's. Here
        their gradient is stopped; what else an optimizer does to them (weight decay, moments that
        count these steps) stops by `fmjax.train.held(…, LAST_LAYER, steps)`.

    Raises:
      ConfigError: a temperature that is not positive, or a momentum outside [0, 1].
    """

    student_temperature: float = 0.1
    teacher_temperature: Schedule = 0.04
    teacher_momentum: Schedule = 0.996
    center_momentum: float = 0.9
    freeze_last_layer: int = 0

    decomposes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature"):
            value = getattr(self, name)
            if not callable(value) and value <= 0:
                raise ConfigError(f"{name}={value} must be positive")
        for name in ("teacher_momentum", "center_momentum"):
            value = getattr(self, name)
            if not callable(value) and not 0 <= value <= 1:
                raise ConfigError(f"{name}={value} must be in [0, 1]")
        if self.freeze_last_layer < 0:
            raise ConfigError(f"freeze_last_layer={self.freeze_last_layer} must not be negative")

    def init(self, variables: Any) -> dict[str, Any]:
        """The teacher is the student, the center zero.

        Raises:
          ConfigError: parameters without prototypes.
        """
        teacher = jax.tree.map(_float32, dict(variables))
        centers = {"center": jnp.zeros(prototypes(variables, "head"), jnp.float32)}
        return {"teacher": teacher, "step": jnp.zeros([], jnp.int32), **centers}

    def networks(self, variables: Any, extra: Any, training: bool) -> tuple[Any, Any]:
        """(student, teacher) variables that this step compares."""
        teacher, step = extra["teacher"], extra["step"]
        if training:
            momentum = at(self.teacher_momentum, step - 1)
            # They are one at the first step, and rounding shall not part them.
            momentum = jnp.where(step == 0, 1.0, momentum)
            teacher = moving_average(teacher, variables, momentum)
        if self.freeze_last_layer:
            frozen = step < self.freeze_last_layer

            def hold(path: str, leaf: Any) -> Any:
                if not re.search(LAST_LAYER, path):
                    return leaf
                return jnp.where(frozen, jax.lax.stop_gradient(leaf), leaf)

            variables = tree.map_with_path(hold, variables)
        return variables, jax.lax.stop_gradient(teacher)

    def moved_center(self, center: jax.Array, logits: jax.Array, weights: jax.Array) -> jax.Array:
        """The center after a batch of the teacher's logits [..., K] with weights [...]."""
        rows = logits.reshape(-1, logits.shape[-1])
        weights = weights.reshape(-1, 1)
        mean = jnp.sum(rows * weights, 0) / jnp.maximum(jnp.sum(weights), 1e-30)
        return self.center_momentum * center + (1 - self.center_momentum) * mean


LAST_LAYER = r"^params/(patch_)?head/last_layer/"
"""Paths of the prototypes."""


def prototypes(variables: Any, head: str) -> int:
    """K of a head.

    Raises:
      ConfigError: there is none.
    """
    kernel = tree.flatten(variables).get(f"params/{head}/last_layer/kernel")
    if kernel is None:
        raise ConfigError(
            f"the parameters have no {head}/last_layer/kernel; wrap the encoder: "
            "fmjax.nn.projection.WithHead(backbone, ProjectionHead(…))"
        )
    return kernel.shape[-1]


def at(schedule: Schedule, step: jax.Array) -> jax.Array | float:
    """A schedule's value; a number is its own."""
    return schedule(step) if callable(schedule) else schedule


def moving_average(average: Any, variables: Any, momentum: jax.Array | float) -> Any:
    """momentum · average + (1 − momentum) · variables, without gradient; integers are copied."""

    def leaf(a: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.lax.stop_gradient(x)
        return a * momentum + (1 - momentum) * _float32(x) if _floating(x) else x

    return jax.tree.map(leaf, average, dict(variables))


def _floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _float32(x: jax.Array) -> jax.Array:
    # In bfloat16 an average that moves by a thousandth would stand still.
    return x.astype(jnp.float32) if _floating(x) else x


def centered_softmax(
    logits: jax.Array, center: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """The teacher's targets: softmax((logits − center) / temperature), f32 [..., K]."""
    return jax.nn.softmax((logits - center) / temperature, -1)


def cross_entropy(targets: jax.Array, logits: jax.Array) -> jax.Array:
    """−Σ_k target_k · log softmax(logits)_k, f32 [..., K] each → f32 [...]; targets sum to 1."""
    return jax.nn.logsumexp(logits, -1) - jnp.sum(targets * logits, -1)


def across_views(targets_BVK: jax.Array, logits_BWK: jax.Array) -> jax.Array:
    """Mean cross-entropy between the views of each image, but not of a view with itself.

    Args:
      targets_BVK: f32, the teacher's distributions, of the first V of W views.
      logits_BWK: f32, the student's, divided by their temperature.

    Returns:
      f32 [B], over V · (W − 1) pairs.
    """
    V, W = targets_BVK.shape[1], logits_BWK.shape[1]
    # No array of [B, V, W, K]: Σ_k q (lse − logit) = lse − q · logits.
    likely = jnp.einsum("bvk,bwk->bvw", targets_BVK, logits_BWK, precision="highest")
    losses_BVW = jax.nn.logsumexp(logits_BWK, -1)[:, None] - likely
    others = 1 - jnp.eye(V, W)
    return jnp.sum(losses_BVW * others, (1, 2)) / (V * (W - 1))
