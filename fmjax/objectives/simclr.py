"""SimCLR: two views of a picture find each other among all views of a batch (arXiv:2002.05709).

Shapes: B pictures of the global batch, two views of each, D size of a projection.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.nn.pooling import unit
from fmjax.objectives.collapse import centre_norm
from fmjax.objectives.contrastive import Contrastive, Embeddings
from fmjax.objectives.inputs import Batch, Metrics, example_weight, output_field
from fmjax.objectives.pair_reductions import LogSumExp
from fmjax.objectives.pairs import dots, over_others


@dataclasses.dataclass(frozen=True)
class SimCLR(Contrastive):
    """Cross-entropy of picking a view's other view among the 2B − 1 views that are not itself.

    The mean over both views (NT-Xent); losses of batch sizes do not compare. Batch: pixel_values
    f32[B, 2, H, W, C], the views that an augmentation made. The model's output has image_embeds
    [2B, D], its projections, of any length. Metrics: loss; accuracy, the share of first views
    whose other view is the nearest of the second views; centre_norm, 1 where all have collapsed
    to a point (`fmjax.objectives.collapse`).

    Attributes:
      temperature: divides the cosines.

    Raises:
      ConfigError: a temperature that is not positive.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"temperature={self.temperature} must be positive")

    def embed(
        self, apply: Callable[..., Any], variables: Any, batch: Batch, rng: jax.Array | None
    ) -> Embeddings:
        """{"views" f32[B, 2, D]} of length 1.

        Raises:
          DataError: pixel_values that are not [B, 2, H, W, C].
          ConfigError: the model's output has no image_embeds.
        """
        x = batch["pixel_values"]
        if x.ndim != 5 or x.shape[1] != 2:
            raise DataError(
                f"pixel_values {x.shape} must be [rows, 2, height, width, channels], two views of "
                "each picture; an augmentation makes them"
            )
        rngs = {} if rng is None else {"rngs": {"dropout": rng}}
        output = apply(variables, pixel_values=x.reshape(-1, *x.shape[2:]), **rngs)
        views = output_field(output, "image_embeds", 2, "projection").astype(jnp.float32)
        return {"views": unit(views, epsilon=1e-6).reshape(*x.shape[:2], -1)}

    def compare(self, embeddings: Embeddings, batch: Batch) -> tuple[jax.Array, jax.Array, Metrics]:
        """See `nt_xent_loss`."""
        first, second = embeddings["views"][:, 0], embeddings["views"][:, 1]
        weight = example_weight(batch)
        loss_sum, total, metrics = nt_xent_loss(
            first, second, self.temperature, weight, form=self.form, chunk=self.chunk
        )
        metrics["centre_norm"] = (centre_norm(first, weight) * total, total)
        return loss_sum, total, metrics


def nt_xent_loss(
    a_BD: jax.Array,
    b_BD: jax.Array,
    temperature: float,
    weight_B: jax.Array,
    *,
    form: str = "auto",
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """For each view the cross-entropy of its other view among all views but itself.

    Args:
      a_BD, b_BD: the views of B pictures, of length 1.
      temperature: divides the cosines.
      weight_B: f32 of each picture; one of weight 0 takes no part at all.
      form, chunk: see `fmjax.objectives.pairs.over_others`.

    Returns:
      loss_sum f32 (of a picture the mean of its views'), weight f32, {"loss", "accuracy"}.
    """
    factor, real = jnp.float32(1 / temperature), weight_B != 0

    def others(x: jax.Array, y: jax.Array) -> Any:
        return over_others(LogSumExp(), x, y, factor, jnp.float32(0), real, form, chunk)

    across, own = others(a_BD, b_BD), factor * dots(a_BD, b_BD)
    of_a = jnp.logaddexp(across.rows, others(a_BD, a_BD).rows)
    of_b = jnp.logaddexp(across.columns, others(b_BD, b_BD).rows)
    losses = (jax.nn.softplus(of_a - own) + jax.nn.softplus(of_b - own)) / 2
    loss_sum, weight = jnp.sum(losses * weight_B), jnp.sum(weight_B)
    right = jnp.sum((own > across.row_top) * weight_B)
    return loss_sum, weight, {"loss": (loss_sum, weight), "accuracy": (right, weight)}
