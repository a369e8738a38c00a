"""What the encoders of CLIP and SigLIP share: pre-norm layers under the same names.

Shapes: B batch, T tokens, D hidden size, H heads, K head size, P size of the common space.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import DataError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.attention import attention
from fmjax.nn.dense import Dense
from fmjax.nn.masks import Mask
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import ContrastiveOutput, EncoderOutput
from fmjax.nn.stack import apply_layers

STACK = "layers"

Initializer = Callable[..., jax.Array]


class Tower(Protocol):
    """What layers must know of the config of their encoder."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    attention_dropout: float


@dataclasses.dataclass(frozen=True)
class Initializers:
    """How the matrices of a layer start.

    Attributes:
      qkv: queries, keys, values.
      out: attention's output projection.
      fc1, fc2: the two of the MLP.
    """

    qkv: Initializer
    out: Initializer
    fc1: Initializer
    fc2: Initializer


class SelfAttention(nn.Module):
    """Multi-head attention: x [B, T, D] → [B, T, D]."""

    config: Tower
    inits: Initializers
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        cfg, ex = self.config, self.execution
        B, T, D = x.shape
        H = cfg.num_attention_heads

        def project(name: str) -> jax.Array:
            dense = Dense(D, ("embed", "heads"), True, self.inits.qkv, ex, name=name)
            return dense(x).reshape(B, T, H, D // H)

        out = attention(
            self,
            project("q_proj"),
            project("k_proj"),
            project("v_proj"),
            mask,
            dropout_rate=cfg.attention_dropout,
            implementation=ex.attention,
        )
        return Dense(D, ("heads", "embed"), True, self.inits.out, ex, name="out_proj")(out)


class Layer(nn.Module):
    """Attention and MLP, each on what is normed and added to what is not."""

    config: Tower
    inits: Initializers
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, own: None) -> jax.Array:
        cfg, ex = self.config, self.execution
        y = LayerNorm(cfg.layer_norm_eps, ex, name="layer_norm1")(x)
        x = x + SelfAttention(cfg, self.inits, ex, name="self_attn")(y, mask)
        mlp = MLP(
            cfg.intermediate_size,
            cfg.hidden_act,
            ("fc1", "fc2"),
            kernel_init=self.inits.fc1,
            out_init=self.inits.fc2,
            execution=ex,
            name="mlp",
        )
        x = x + mlp(LayerNorm(cfg.layer_norm_eps, ex, name="layer_norm2")(x))
        return constrain(x, ("batch", "seq", "act_embed"))


def encode(
    config: Tower,
    init: Initializers,
    execution: Execution,
    x: jax.Array,
    mask: Mask,
    collect: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
    """The layers of an encoder; call it inside the compact `__call__` of the module that has them.

    Args:
      config: sizes.
      init: how the layers start.
      execution: precision, scanning, rematerialisation, kernels.
      x: [B, T, D].
      mask: which token sees which.
      collect: also return the input and every layer's output.

    Returns:
      ([B, T, D], L + 1 arrays of that shape or None).
    """
    x = constrain(x, ("batch", "seq", "act_embed"))
    y, outputs = apply_layers(
        lambda name: Layer(config, init, execution, name=name),
        config.num_hidden_layers,
        x,
        mask,
        name=STACK,
        execution=execution,
        collect=collect,
    )
    return y, ((x, *outputs) if collect else None)


def check_text(limit: int, input_ids: jax.Array, **others: jax.Array | None) -> None:
    """Refuses texts that are longer than the position table, and inputs of other shapes.

    Raises:
      DataError: such an input.
    """
    if input_ids.ndim != 2 or input_ids.shape[1] > limit:
        raise DataError(
            f"input_ids {input_ids.shape} must be [batch, at most {limit} tokens]; cut the texts"
        )
    for name, x in others.items():
        if x is not None and x.shape != input_ids.shape:
            raise DataError(f"{name} {x.shape} must have the shape of input_ids {input_ids.shape}")


def check_given(head: str | None, input_ids: Any, pixel_values: Any) -> None:
    """Refuses a call without the inputs that the head reads.

    Raises:
      DataError: neither images nor texts, or no images for a classifier of images.
    """
    if head is not None and (pixel_values is None or input_ids is not None):
        raise DataError(f"the head {head!r} reads pixel_values, and nothing else; pass these")
    if pixel_values is None and input_ids is None:
        raise DataError("the model needs pixel_values, input_ids, or both; neither is given")


def normalize(x: jax.Array) -> jax.Array:
    """x [..., P] divided by its length, in float32; a row of zeros stays."""
    x = x.astype(jnp.float32)
    # Under the square root, so that a row of zeros has a finite gradient.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def compare(
    image_features: jax.Array | None,
    text_features: jax.Array | None,
    logit_scale: jax.Array | None,
    logit_bias: jax.Array | None = None,
    vision: EncoderOutput | None = None,
    text: EncoderOutput | None = None,
) -> ContrastiveOutput:
    """Features [I, P] and [J, P] brought to length 1, and their scores where both are given.

    Args:
      image_features, text_features: None where that input was not given.
      logit_scale, logit_bias: the parameters, [] or [1], or None.
      vision, text: handed on.
    """
    image = None if image_features is None else normalize(image_features)
    words = None if text_features is None else normalize(text_features)
    scale, bias = (
        None if x is None else x.astype(jnp.float32).reshape(()) for x in (logit_scale, logit_bias)
    )
    logits = None
    if image is not None and words is not None:
        logits = jnp.einsum("ip,jp->ij", image, words) * jnp.exp(scale)
        logits = logits if bias is None else logits + bias
    return ContrastiveOutput(
        logits_per_image=logits,
        logits_per_text=None if logits is None else logits.T,
        image_embeds=image,
        text_embeds=words,
        image_features=image_features,
        text_features=text_features,
        logit_scale=scale,
        logit_bias=bias,
        vision_model_output=vision,
        text_model_output=text,
    )


def dummy_texts() -> dict[str, Any]:
    """The smallest valid texts, for tracing."""
    return {"input_ids": jnp.zeros((1, 2), jnp.int32)}


def dummy_images(config: Any) -> dict[str, Any]:
    """The smallest valid images for an encoder with this config, for tracing."""
    side = config.patch_size
    return {"pixel_values": jnp.zeros((1, side, side, config.num_channels), jnp.float32)}
