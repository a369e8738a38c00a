"""Heads that only pretraining needs, on top of any encoder of images.

Shapes: R images, T tokens, N patches, D hidden size, K outputs of the head, G groups of images,
M patches of a group.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.activations import activation
from fmjax.nn.dense import Dense
from fmjax.nn.outputs import ProjectionOutput
from fmjax.nn.param import param
from fmjax.nn.pooling import unit


class ProjectionHead(nn.Module):
    """DINO's head (arXiv:2104.14294): an MLP, a bottleneck on the sphere, cosines to K prototypes.

    Attributes:
      features: K, the number of prototypes.
      hidden: width of the MLP's hidden layers.
      bottleneck: width of what is brought to length 1.
      layers: of the MLP, at least 1.
      act: name of its activation.
      kernel_init: of the MLP's kernels.
      learned_scale: a length for each prototype, as in DINOv2; else all have length 1, DINO's
        default (`norm_last_layer`).
      execution: precision; the result is float32.
    """

    features: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    act: str = "gelu"
    kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
    learned_scale: bool = False
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] → f32 [..., K]."""
        ex = self.execution
        names = ("embed", "mlp")
        for i in range(self.layers):
            last = i == self.layers - 1
            axes = (names[i % 2], None if last else names[(i + 1) % 2])
            width = self.bottleneck if last else self.hidden
            x = Dense(width, axes, True, self.kernel_init, ex, name=f"dense_{i}")(x)
            x = x if last else activation(self.act)(x)
        return Prototypes(self.features, self.learned_scale, ex, name="last_layer")(unit(x))


class Prototypes(nn.Module):
    """x · w / ‖w‖ for each of K directions w, times its length where it has one (weight norm)."""

    features: int
    learned_scale: bool = False
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex, K = self.execution, self.features
        # As torch's linear layer starts: its lengths matter to how fast the directions turn.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        axes = ("embed", "vocab")
        kernel = param(self, "kernel", init, (x.shape[-1], K), axes, ex.param_dtype)
        w = unit(kernel, axis=0)
        if self.learned_scale:
            scale = param(self, "scale", nn.initializers.ones, (K,), ("vocab",), ex.param_dtype)
            w = w * scale.astype(jnp.float32)
        y = jnp.matmul(x.astype(ex.dtype), w.astype(ex.dtype), preferred_element_type=jnp.float32)
        return constrain(y, ("batch", *(None,) * (y.ndim - 2), "act_vocab"))


class WithHead(nn.Module):
    """An encoder and a head: parameters {"backbone": …, "head": …, "patch_head": …?}.

    What is exported after pretraining is `params["backbone"]`, with the model `backbone`.

    Attributes:
      backbone: a model whose output has `last_hidden_state` [R, T, D] or `pooler_output` [R, D].
      head: a module [..., D] → [..., K], for images.
      patch_head: the same for patches; None shares `head`.
      pool: what the head reads of an image: "cls" is the first token, "pooler" `pooler_output`
        (of encoders without tokens, or with a pooling of their own).
      prefix: tokens that stand before the patches; None means 1 and the config's registers.
    """

    backbone: nn.Module
    head: nn.Module
    patch_head: nn.Module | None = None
    pool: Literal["cls", "pooler"] = "cls"
    prefix: int | None = None

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, patch_index: jax.Array | None = None, **inputs: Any
    ) -> ProjectionOutput:
        """The encoder's and the head's outputs.

        Args:
          pixel_values: [R, H, W, C].
          patch_index: i32 [G, M], patches to be projected too: the images are cut into G groups,
            and the patches of a group are numbered image by image.
          **inputs: of the backbone, such as bool_masked_pos.

        Raises:
          ConfigError: an unknown pool, or an encoder that does not have it.
        """
        output = self.backbone(pixel_values=pixel_values, **inputs)
        tokens = output.last_hidden_state
        features = self._features(output)
        patches = None
        if patch_index is not None:
            G, first = patch_index.shape[0], self.prefix
            if first is None:
                config = getattr(self.backbone, "config", None)
                first = 1 + getattr(config, "num_register_tokens", 0)
            places = tokens[:, first:].reshape(G, -1, tokens.shape[-1])
            chosen = jnp.take_along_axis(places, patch_index[..., None], 1)
            patches = (self.patch_head or self.head)(constrain(chosen, ("batch", None, None)))
        return ProjectionOutput(self.head(features), features, tokens, patches)

    def _features(self, output: Any) -> jax.Array:
        """[R, D]."""
        if self.pool == "cls":
            return output.last_hidden_state[:, 0]
        features = getattr(output, "pooler_output", None)
        if self.pool != "pooler" or features is None:
            raise ConfigError(
                f"WithHead: pool={self.pool!r} must be 'cls', or 'pooler' for a backbone with a "
                f"pooler_output ({type(output).__name__} of {type(self.backbone).__name__})"
            )
        return features

    @property
    def config(self) -> Any:
        """The backbone's."""
        return self.backbone.config

    def dummy_inputs(self) -> dict[str, Any]:
        """The backbone's, and a patch where patches have a head of their own."""
        inputs = dict(self.backbone.dummy_inputs())
        if self.patch_head is not None:
            inputs["patch_index"] = jnp.zeros((1, 1), jnp.int32)
        return inputs
