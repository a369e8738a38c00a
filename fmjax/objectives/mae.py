"""Masked autoencoding: predict the pixels of hidden patches (arXiv:2111.06377)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.nn.patches import patchify
from fmjax.objectives.inputs import Batch, Metrics, OverExamples, example_weight, output_field


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding(OverExamples):
    """Mean squared error of the hidden patches' pixels, averaged over an image's hidden patches.

    Patches are chosen anew in every step from the step's key; an evaluation hides the same ones
    every time.

    Attributes:
      patch_size: pixels of a patch, one number or (height, width): the model's.
      norm_pix_loss: compares with each patch less its mean, over its standard deviation (with the
        unbiased variance + 1e-6).
      frozen: paths that training leaves alone, for `fmjax.train.freeze(*objective.frozen)`: the
        fixed positions.

    Raises:
      ConfigError: a patch without pixels.
    """

    patch_size: int | tuple[int, int] = 16
    norm_pix_loss: bool = True
    frozen: ClassVar[tuple[str, ...]] = (r"(^|/)position_embeddings/",)

    def __post_init__(self) -> None:
        if min(self.patch) < 1:
            raise ConfigError(f"patch_size={self.patch_size} must be a positive number of pixels")

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        size = self.patch_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the images' losses, and their number.

        Args:
          apply: `model.apply`; its output has `logits` [B, P, p · q · C] and `mask` [B, P].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: pixel_values f32 [B, H, W, C] of whole patches; noise f32 [B, P] chooses the
            patches in place of the key; example_weight f32 [B] multiplies the weight of a row.
          rng: key for the choice of patches and for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: no pixel_values, or images that are not made of whole patches.
          ConfigError: a model without the decoder, or with other patches.
        """
        if "pixel_values" not in batch:
            raise DataError("the batch has no pixel_values, the normalised images [B, H, W, C]")
        pixels = batch["pixel_values"]
        target = self.targets(pixels)
        if "noise" in batch:
            noise = batch["noise"]
        else:
            key = jax.random.key(0) if rng is None else jax.random.fold_in(rng, 0)
            noise = jax.random.uniform(key, target.shape[:2])
        rngs = {} if rng is None else {"rngs": {"dropout": jax.random.fold_in(rng, 1)}}
        output = apply(variables, pixel_values=pixels, noise=noise, **rngs)
        logits = output_field(output, "logits", 3, "pretraining")
        if logits.shape != target.shape:
            raise ConfigError(
                f"the model predicts {logits.shape[1:]} (patches, their numbers) where patches of "
                f"{self.patch_size} are {target.shape[1:]}; give the objective its patch_size"
            )
        error = jnp.mean(jnp.square(logits.astype(jnp.float32) - target), -1)
        rows = jnp.sum(error * output.mask, 1) / jnp.sum(output.mask, 1)
        weights = example_weight(batch)
        loss_sum, weight = jnp.sum(rows * weights), jnp.sum(weights)
        return loss_sum, weight, {"loss": (loss_sum, weight)}, extra

    def targets(self, pixels: jax.Array) -> jax.Array:
        """What is predicted: images [B, H, W, C] → f32 [B, P, p · q · C]."""
        x = patchify(pixels.astype(jnp.float32), self.patch)
        if not self.norm_pix_loss:
            return x
        mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True, ddof=1)
        return (x - mean) / jnp.sqrt(variance + 1e-6)
