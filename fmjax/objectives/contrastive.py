"""CLIP: of all texts of a batch, pick an image's own, and the other way round (arXiv:2103.00020).

Shapes: B pairs of the global batch, D size of an embedding.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.objectives.inputs import (
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    forward,
)
from fmjax.objectives.pair_reductions import LogSumExp
from fmjax.objectives.pairs import check_form, dots, over_others

Embeddings = Mapping[str, jax.Array]
INPUTS = ("pixel_values", "attention_mask")


@dataclasses.dataclass(frozen=True)
class Contrastive(OverExamples):
    """What the objectives over all pairs of a batch share.

    A loss is two functions, `embed` (each row for itself) and `compare` (all rows together), so
    that the step can embed a batch in parts and still compare it as a whole
    (`fmjax.train.gradient_cache`). Cutting the batch itself would change the loss.

    Attributes:
      form: how pairs are spread over devices, see `fmjax.objectives.pairs`.
      chunk: of the ring.

    Raises:
      ConfigError: an unknown form, or a chunk that is not positive.
    """

    form: str = "auto"
    chunk: int = 1024

    decomposes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_form(self.form, self.chunk)

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the pairs' losses, the sum of their weights, metrics {name: (sum, weight)}, extra.

        Args:
          apply: `model.apply`.
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: see the class; example_weight f32[B] multiplies the weight of a row, and where it
            is 0 the row is no candidate of the others either.
          rng: key for dropout; None evaluates.
        """
        return *self.compare(self.embed(apply, variables, batch, rng), batch), extra


@dataclasses.dataclass(frozen=True)
class ImageText(Contrastive):
    """Of models with two towers, whose output is a `ContrastiveOutput`.

    Batch: pixel_values f32[B, H, W, C], input_ids i32[B, T], attention_mask.
    """

    bias: ClassVar[bool] = False

    def embed(
        self, apply: Callable[..., Any], variables: Any, batch: Batch, rng: jax.Array | None
    ) -> Embeddings:
        """{"image" [B, D], "text" [B, D], "logit_scale" [], "logit_bias" []}.

        Raises:
          ConfigError: the model's output lacks one of them.
        """
        output = forward(apply, variables, batch, rng, INPUTS)
        needed = {"image": "image_embeds", "text": "text_embeds", "logit_scale": "logit_scale"}
        if self.bias:
            needed["logit_bias"] = "logit_bias"
        found = {name: getattr(output, field, None) for name, field in needed.items()}
        for name, x in found.items():
            if x is None:
                raise ConfigError(
                    f"{type(output).__name__} has no {needed[name]}, which {type(self).__name__} "
                    "reads; it trains models of images and texts, and SigLIP's have a logit_bias"
                )
        return found


@dataclasses.dataclass(frozen=True)
class ContrastiveImageText(ImageText):
    """CLIP's symmetric cross-entropy over the global batch. Losses of batch sizes do not compare.

    Metrics: loss; image_accuracy and text_accuracy, the shares of images whose own text is the
    nearest and of texts whose own image is; logit_scale, the factor on the cosines.

    Attributes:
      max_scale: bound on the factor. After each update the trained parameter, its logarithm, is
        brought back to [0, ln max_scale], as in the original; None leaves it.

    Raises:
      ConfigError: a bound below 1.
    """

    max_scale: float | None = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_scale is not None and self.max_scale < 1:
            raise ConfigError(f"max_scale={self.max_scale} must be at least 1, or None")

    def compare(self, embeddings: Embeddings, batch: Batch) -> tuple[jax.Array, jax.Array, Metrics]:
        """See `clip_loss`."""
        log_scale = embeddings["logit_scale"]
        loss_sum, weight, metrics = clip_loss(
            embeddings["image"],
            embeddings["text"],
            log_scale,
            example_weight(batch),
            form=self.form,
            chunk=self.chunk,
        )
        factor = jax.lax.stop_gradient(jnp.exp(log_scale.astype(jnp.float32)))
        return loss_sum, weight, metrics | {"logit_scale": (factor * weight, weight)}

    def project(self, trained: Any, extra: Any) -> Any:
        """The trained parameters after an update, `logit_scale` brought back into its bounds."""
        if self.max_scale is None:
            return trained
        top = math.log(self.max_scale)
        return tree.map_with_path(
            lambda path, x: jnp.clip(x, 0, top) if path.endswith("logit_scale") else x, trained
        )


def clip_loss(
    image_BD: jax.Array,
    text_BD: jax.Array,
    logit_scale: jax.Array,
    weight_B: jax.Array,
    *,
    form: str = "auto",
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Mean of two cross-entropies: an image's own text among all, a text's own image among all.

    Args:
      image_BD, text_BD: embeddings of length 1; row i of one belongs to row i of the other.
      logit_scale: f32[], logarithm of the factor on the cosines.
      weight_B: f32 of each pair; one of weight 0 takes no part at all.
      form, chunk: see `fmjax.objectives.pairs.over_others`.

    Returns:
      loss_sum f32, weight f32, {"loss", "image_accuracy", "text_accuracy"}: (sum, weight).
    """
    factor = jnp.exp(jnp.asarray(logit_scale, jnp.float32))
    own = factor * dots(image_BD, text_BD)
    others = over_others(
        LogSumExp(), image_BD, text_BD, factor, jnp.float32(0), weight_B != 0, form, chunk
    )
    # log Σ over all − own = log(1 + exp(log Σ over the others − own)).
    losses = (jax.nn.softplus(others.rows - own) + jax.nn.softplus(others.columns - own)) / 2
    return sums(losses, weight_B, own, others)


def sums(
    losses_B: jax.Array, weight_B: jax.Array, own_B: jax.Array, others: Any
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Weighted sums of losses, and how often the own logit beats all others of row and column."""
    loss_sum, weight = jnp.sum(losses_B * weight_B), jnp.sum(weight_B)
    metrics = {"loss": (loss_sum, weight)}
    for name, top in (("image_accuracy", others.row_top), ("text_accuracy", others.column_top)):
        metrics[name] = (jnp.sum((own_B > top) * weight_B), weight)
    return loss_sum, weight, metrics
