"""The masked autoencoder (arXiv:2111.06377): a ViT sees a few patches, a small one fills the rest.

Shapes: B batch, H × W pixels, C channels, P patches of p × q pixels, D hidden size, d that of the
decoder.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.vision import pair
from fmjax.models.vit_mae.config import ViTMAEConfig
from fmjax.nn import prefix_port
from fmjax.nn.dense import Dense
from fmjax.nn.encoder_block import PreNormBlock
from fmjax.nn.masks import Mask
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput, MaskedAutoencoderOutput
from fmjax.nn.patches import PatchEmbeddings
from fmjax.nn.ports import check_expanded
from fmjax.nn.sincos import sincos
from fmjax.nn.stack import apply_layers
from fmjax.nn.vision_tokens import GridPositions, Tokens, put_before

STACK = "layers"
MASK = "mask"
"""Name of the random stream that chooses patches."""

# As the original initialises all its linear layers.
_init = nn.initializers.xavier_uniform()


class ViTMAE(nn.Module):
    """An encoder that sees some of the patches, and its decoder if the config has the head.

    Positions are fixed sines and cosines. They are parameters, as files hold them, and have no
    gradient; training keeps weight decay from them by `fmjax.train.freeze("position_embeddings/")`.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: ViTMAEConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array,
        noise: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput | MaskedAutoencoderOutput:
        """Runs the encoder, and the decoder if there is one.

        Args:
          pixel_values: [B, H, W, C], floating and normalised. Positions are resampled where the
            grid of patches is not the config's.
          noise: f32 [B, P]; the patches with the lowest values are kept. None draws it from the
            random stream "mask"; without a decoder None keeps all.
          output_hidden_states: return every layer's output of the encoder too.

        Returns:
          The output of `config.head`. `last_hidden_state` [B, 1 + kept, D] is normed; its first
          token is the class token, the kept patches follow in the order of their noise.

        Raises:
          DataError: inputs of another shape or dtype.
          ConfigError: neither noise nor a key for it, or an adapter that does not fit.
        """
        cfg, ex = self.config, self.execution
        check_expanded(self)
        D = cfg.hidden_size
        patches = PatchEmbeddings(
            D, cfg.patch, cfg.num_channels, True, _init, ex, name="patch_embeddings"
        )
        x, grid = patches(pixel_values)
        init = _fixed(cfg.grid, D)
        positions = GridPositions(D, cfg.grid, init=init, execution=ex, name="position_embeddings")
        first, places = jax.lax.stop_gradient(positions(grid))
        x = x + places
        restore = None
        if cfg.head is not None or noise is not None:
            x, restore = _shuffled(x, self._noise(noise, x), cfg.kept(x.shape[1]))
        normal = nn.initializers.normal(cfg.initializer_range)
        x = put_before(Tokens(D, 1, normal, ex, name="cls_token")() + first, x)
        x0 = constrain(x, ("batch", "seq", "act_embed"))
        virtual = prefix_port.offset(self, x0.shape[1], None)
        x, outputs = apply_layers(
            lambda name: PreNormBlock(
                cfg.num_attention_heads,
                cfg.intermediate_size,
                cfg.hidden_act,
                cfg.layer_norm_eps,
                cfg.qkv_bias,
                cfg.hidden_dropout_prob,
                cfg.attention_probs_dropout_prob,
                _init,
                ex,
                name=name,
            ),
            cfg.num_hidden_layers,
            x0,
            Mask(causal=False, virtual=virtual),
            name=STACK,
            execution=ex,
            collect=output_hidden_states,
        )
        x = LayerNorm(cfg.layer_norm_eps, ex, name="final_norm")(x)
        hidden_states = (x0, *outputs) if output_hidden_states else None
        if cfg.head is None:
            return EncoderOutput(x, None, hidden_states)
        logits = Decoder(cfg, ex, name="decoder")(x, restore, virtual)
        mask = (restore >= x.shape[1] - 1).astype(jnp.float32)
        return MaskedAutoencoderOutput(logits, mask, restore, x, hidden_states)

    def _noise(self, noise: jax.Array | None, x: jax.Array) -> jax.Array:
        shape = x.shape[:2]
        if noise is not None:
            if noise.shape != shape or not jnp.issubdtype(noise.dtype, jnp.floating):
                raise DataError(
                    f"noise is {noise.dtype} {noise.shape}; it must be floating, one number for "
                    f"each patch {shape}"
                )
            return noise
        if self.is_initializing():
            return jnp.zeros(shape)
        if not self.has_rng(MASK):
            raise ConfigError(
                "a masked autoencoder hides patches at random: pass noise=, or a key "
                "rngs={'mask': key}"
            )
        return jax.random.uniform(self.make_rng(MASK), shape)

    def dummy_inputs(self) -> dict[str, Any]:
        """An image of the config's size, for tracing."""
        cfg = self.config
        return {"pixel_values": jnp.zeros((1, *pair(cfg.image_size), cfg.num_channels))}


class Decoder(nn.Module):
    """Pixels of all patches: encoded tokens [B, 1 + kept, D] → f32 [B, P, p · q · C]."""

    config: ViTMAEConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, restore: jax.Array, virtual: int) -> jax.Array:
        """Puts mask tokens in the place of what was hidden, and predicts.

        Args:
          x: the class token and the kept patches.
          restore: i32 [B, P], the place of each patch among the kept and then the hidden ones.
          virtual: tokens of an adapter's prefix.
        """
        cfg, ex = self.config, self.execution
        B, P = restore.shape
        d, (p, q) = cfg.decoder_hidden_size, cfg.patch
        x = Dense(d, ("embed", None), True, _init, ex, name="embed")(x)
        normal = nn.initializers.normal(cfg.initializer_range)
        hidden = Tokens(d, 1, normal, ex, name="mask_token")()
        hidden = jnp.broadcast_to(hidden, (B, P + 1 - x.shape[1], d))
        patches = jnp.concatenate([x[:, 1:], hidden], 1)
        patches = jnp.take_along_axis(patches, restore[..., None], 1)
        # transformers resamples these along the row of all patches, not over the grid.
        positions = GridPositions(
            d,
            (1, cfg.num_patches),
            init=_fixed(cfg.grid, d),
            execution=ex,
            name="position_embeddings",
        )
        first, places = jax.lax.stop_gradient(positions((1, P)))
        x = jnp.concatenate([x[:, :1] + first, patches + places], 1)
        x, _ = apply_layers(
            lambda name: PreNormBlock(
                cfg.decoder_num_attention_heads,
                cfg.decoder_intermediate_size,
                cfg.hidden_act,
                cfg.layer_norm_eps,
                cfg.qkv_bias,
                cfg.hidden_dropout_prob,
                cfg.attention_probs_dropout_prob,
                _init,
                ex,
                name=name,
            ),
            cfg.decoder_num_hidden_layers,
            constrain(x, ("batch", "seq", "act_embed")),
            Mask(causal=False, virtual=virtual),
            name=STACK,
            execution=ex,
        )
        x = LayerNorm(cfg.layer_norm_eps, ex, name="norm")(x[:, 1:])
        features, axes = p * q * cfg.num_channels, ("embed", None)
        return Dense(features, axes, True, _init, ex, jnp.float32, name="predict")(x)


def _shuffled(x: jax.Array, noise: jax.Array, kept: int) -> tuple[jax.Array, jax.Array]:
    """The patches [B, kept, D] with the lowest noise, and every patch's rank i32 [B, P]."""
    order = jnp.argsort(noise, 1)
    return jnp.take_along_axis(x, order[:, :kept, None], 1), jnp.argsort(order, 1)


def _fixed(grid: tuple[int, int], features: int) -> nn.initializers.Initializer:
    """The table [1, 1 + P, D]: zeros for the class token, sines and cosines for the patches."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jnp.pad(jnp.asarray(sincos(grid, features), dtype), ((1, 0), (0, 0)))[None]

    return init
