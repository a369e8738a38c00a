"""ResNet (arXiv:1512.03385).

Shapes: B batch, H and W of the picture, C channels, N labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.resnet.config import REDUCTION, ResNetConfig
from fmjax.nn.activations import activation
from fmjax.nn.batch_norm import BatchNorm
from fmjax.nn.conv import Conv
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.outputs import EncoderOutput, ImageClassifierOutput
from fmjax.nn.stack import REMAT

STACK = "stages"

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation: [B, H, W, in] → [B, H', W', out]."""

    features: int
    size: int
    execution: Execution
    stride: int = 1
    act: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(
            self.features,
            (self.size, self.size),
            (None, "embed"),
            (self.stride, self.stride),
            padding=self.size // 2,
            use_bias=False,
            kernel_init=_INIT,
            execution=self.execution,
            name="convolution",
        )(x)
        x = BatchNorm(execution=self.execution, name="normalization")(x)
        return x if self.act is None else activation(self.act)(x)


class Block(nn.Module):
    """Convolutions beside a shortcut: [B, H, W, in] → [B, H / stride, W / stride, features]."""

    config: ResNetConfig
    features: int
    stride: int
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, ex = self.config, self.execution
        # Within a block it is a ReLU whatever hidden_act says.
        act = "relu"

        def conv(y: jax.Array, number: int, *args: Any, **kwargs: Any) -> jax.Array:
            return ConvNorm(*args, execution=ex, **kwargs, name=f"conv_{number}")(y)

        if cfg.layer_type == "basic":
            y = conv(x, 0, self.features, 3, stride=self.stride, act=act)
            y = conv(y, 1, self.features, 3)
        else:
            narrow = self.features // REDUCTION
            strides = (self.stride, 1) if cfg.downsample_in_bottleneck else (1, self.stride)
            y = conv(x, 0, narrow, 1, stride=strides[0], act=act)
            y = conv(y, 1, narrow, 3, stride=strides[1], act=act)
            y = conv(y, 2, self.features, 1)
        if x.shape[-1] != self.features or self.stride != 1:
            x = ConvNorm(self.features, 1, ex, self.stride, name="shortcut")(x)
        return constrain(activation(cfg.hidden_act)(x + y), ("batch", None, None, None))


class Stage(nn.Module):
    """Blocks of one size; the first one may halve the picture."""

    config: ResNetConfig
    number: int
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, ex = self.config, self.execution
        block: Any = Block
        if ex.remat != "none":
            block = nn.remat(Block, policy=REMAT[ex.remat])
        halves = self.number > 0 or cfg.downsample_in_first_stage
        for i in range(cfg.depths[self.number]):
            stride = 2 if halves and i == 0 else 1
            x = block(cfg, cfg.hidden_sizes[self.number], stride, ex, name=f"block_{i}")(x)
        return x


class ResNet(nn.Module):
    """ResNet with the head that the config names.

    Batch norm takes the batch's statistics exactly when a "dropout" key is passed, see
    `fmjax.nn.batch_norm`; nothing else here is random. Blocks are not scanned, as few are alike.

    Attributes:
      config: the architecture.
      execution: precision, rematerialisation (of each block).
    """

    config: ResNetConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, output_hidden_states: bool = False
    ) -> EncoderOutput | ImageClassifierOutput:
        """Runs the encoder and the head.

        Args:
          pixel_values: f32 [B, H, W, C], normalised.
          output_hidden_states: return what comes out of the stem and of every stage.

        Returns:
          The output of `config.head`: last_hidden_state [B, H / 32, W / 32, D] (rounded up) and
          pooler_output [B, D], its mean over the picture; or logits f32 [B, N].

        Raises:
          DataError: pixel_values that are not [B, H, W, C] with the config's channels.
          ConfigError: an unknown remat policy.
        """
        cfg, ex = self.config, self.execution
        if pixel_values.ndim != 4 or pixel_values.shape[-1] != cfg.num_channels:
            raise DataError(
                f"pixel_values {pixel_values.shape} must be [batch, height, width, "
                f"{cfg.num_channels}], channels last"
            )
        if ex.remat not in REMAT:
            raise ConfigError(f"remat {ex.remat!r} is unknown; choose one of {', '.join(REMAT)}")
        x = constrain(pixel_values, ("batch", None, None, None))
        size, stride = (3, 1) if cfg.small_images else (7, 2)
        x = ConvNorm(cfg.embedding_size, size, ex, stride, cfg.hidden_act, name="embedder")(x)
        if not cfg.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        states = [x]
        for i in range(len(cfg.depths)):
            x = Stage(cfg, i, ex, name=f"stage_{i}")(x)
            states.append(x)
        hidden_states = tuple(states) if output_hidden_states else None
        pooled = jnp.mean(x.astype(jnp.float32), (1, 2)).astype(ex.dtype)
        if cfg.head is None:
            return EncoderOutput(x, pooled, hidden_states)
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        head = Dense(
            cfg.num_labels, ("embed", None), True, init, ex, jnp.float32, name="classifier"
        )
        pooled = dropout(self, pooled, cfg.classifier_rate)
        return ImageClassifierOutput(head(pooled), x, hidden_states)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return {"pixel_values": jnp.zeros((1, 32, 32, self.config.num_channels))}
