"""What the encoders of CLIP and SigLIP share, and how images and texts are compared.

Shapes: B batch, T tokens, D hidden size, I images, J texts, P size of the common space.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn import prefix_port, prompt_port
from fmjax.nn.embed import Embed
from fmjax.nn.encoder_block import PreNormBlock
from fmjax.nn.interpolate import interpolate_grid
from fmjax.nn.masks import Mask
from fmjax.nn.outputs import ContrastiveOutput, EncoderOutput
from fmjax.nn.pooling import unit
from fmjax.nn.ports import check_expanded
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
      mlp: the first of the MLP.
      residual: the two that write into the residual stream.
    """

    qkv: Initializer
    mlp: Initializer
    residual: Initializer


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
        lambda name: PreNormBlock(
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.layer_norm_eps,
            attention_dropout=config.attention_dropout,
            kernel_init=init.qkv,
            execution=execution,
            mlp_init=init.mlp,
            residual_init=init.residual,
            name=name,
        ),
        config.num_hidden_layers,
        x,
        mask,
        name=STACK,
        execution=execution,
        collect=collect,
    )
    return y, ((x, *outputs) if collect else None)


def positions(table: Embed, config: Any, grid: tuple[int, int], first: int = 0) -> jax.Array:
    """Position vectors [first + patches, D] of an image's tokens, from the table of a config.

    Args:
      table: of `first` tokens that have no place, then of the patches of config.image_size.
      config: of the encoder.
      grid: patches down and across of the image at hand; another one than the table's is
        interpolated as torch does.
      first: how many tokens come before the patches.
    """
    side = config.image_size // config.patch_size
    rows = jnp.arange(first + side * side, dtype=jnp.int32)
    # Read by row, so that adapters of the table act.
    places = table(rows[None])[0]
    if grid == (side, side):
        return places
    moved = interpolate_grid(places[first:], (side, side), grid).astype(places.dtype)
    return jnp.concatenate([places[:first], moved])


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


def check_adapter(model: nn.Module) -> None:
    """Refuses adapters that would not act; the entry of every model calls it.

    Raises:
      ConfigError: an adapter that is still to be computed, or one of virtual tokens.
    """
    check_expanded(model)
    adapter = model.variables.get(COLLECTION, {})
    if prompt_port.length(adapter) or prefix_port.length(adapter):
        raise ConfigError(
            f"a {model.config.model_type} model reads no virtual tokens before its inputs; adapt "
            "it with LoRA or IA3"
        )


def check_given(head: str | None, input_ids: Any, pixel_values: Any) -> None:
    """Refuses a call without the inputs that the head reads.

    Raises:
      DataError: neither images nor texts, or no images for a classifier of images.
    """
    if head is not None and (pixel_values is None or input_ids is not None):
        raise DataError(f"the head {head!r} reads pixel_values, and nothing else; pass these")
    if pixel_values is None and input_ids is None:
        raise DataError("the model needs pixel_values, input_ids, or both; neither is given")


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
    image = None if image_features is None else unit(image_features)
    words = None if text_features is None else unit(text_features)
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
