"""SigLIP: each pair of an image and a text is asked whether it is one (arXiv:2303.15343).

Shapes: B pairs of the global batch, D size of an embedding.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.objectives.contrastive import Embeddings, ImageText, sums
from fmjax.objectives.inputs import Batch, Metrics, example_weight
from fmjax.objectives.pair_reductions import SoftplusSum
from fmjax.objectives.pairs import dots, over_others


@dataclasses.dataclass(frozen=True)
class SigmoidImageText(ImageText):
    """SigLIP's loss: −Σ_j log σ(±(scale · cosine + bias)), + where j is the own text.

    Averaged over images. The global batch makes the negatives, so it is not cut into parts, and
    losses of batch sizes do not compare. Metrics: loss; image_accuracy, text_accuracy, the shares
    whose own counterpart is the nearest; logit_scale, the factor; logit_bias.
    """

    bias: ClassVar[bool] = True

    def compare(self, embeddings: Embeddings, batch: Batch) -> tuple[jax.Array, jax.Array, Metrics]:
        """See `siglip_loss`."""
        log_scale, bias = embeddings["logit_scale"], embeddings["logit_bias"]
        loss_sum, weight, metrics = siglip_loss(
            embeddings["image"],
            embeddings["text"],
            log_scale,
            bias,
            example_weight(batch),
            form=self.form,
            chunk=self.chunk,
        )
        told = {"logit_scale": jnp.exp(log_scale.astype(jnp.float32)), "logit_bias": bias}
        for name, x in told.items():
            metrics[name] = (jax.lax.stop_gradient(x.astype(jnp.float32)) * weight, weight)
        return loss_sum, weight, metrics


def siglip_loss(
    image_BD: jax.Array,
    text_BD: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    weight_B: jax.Array,
    *,
    form: str = "auto",
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """For each image, the binary cross-entropies of all texts.

    Args:
      image_BD, text_BD: embeddings of length 1; row i of one belongs to row i of the other.
      logit_scale: f32[], logarithm of the factor on the cosines; ln 10 at the start.
      logit_bias: f32[], −10 at the start, as nearly all pairs are none.
      weight_B: f32 of each image; one of weight 0 takes no part, and its text neither.
      form, chunk: see `fmjax.objectives.pairs.over_others`.

    Returns:
      loss_sum f32, weight f32, {"loss", "image_accuracy", "text_accuracy"}: (sum, weight).
    """
    factor, bias = (jnp.asarray(x, jnp.float32) for x in (logit_scale, logit_bias))
    factor = jnp.exp(factor)
    own = factor * dots(image_BD, text_BD) + bias
    others = over_others(SoftplusSum(), image_BD, text_BD, factor, bias, weight_B != 0, form, chunk)
    return sums(jax.nn.softplus(-own) + others.rows, weight_B, own, others)
