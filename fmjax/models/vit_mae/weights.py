"""Weights map of masked autoencoders: `ViTMAEModel` and `ViTMAEForPreTraining`."""

import dataclasses

from fmjax.convert import Row
from fmjax.models.vision_rows import dense, embeddings, norm, prefixed, vit_layers
from fmjax.models.vit_mae.config import ViTMAEConfig

_LAYERS = "decoder.decoder_layers."
# What transformers 5 makes of it when it writes: its renaming of the encoder's layers hits these.
_MANGLED = "decoder.decoder_encoder.layer."


def rows(config: ViTMAEConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    prefix = "" if config.head is None else "vit."
    encoder = [
        *embeddings(prefix),
        *vit_layers(f"{prefix}encoder.layer.", f"{prefix}layers.", "layers", config.qkv_bias),
        *norm(f"{prefix}layernorm", "final_norm"),
    ]
    return [*prefixed(encoder, "vit."), *(_decoder(config) if config.head else [])]


def _decoder(config: ViTMAEConfig) -> list[Row]:
    layers = vit_layers(_LAYERS, _LAYERS, "decoder/layers", config.qkv_bias)
    return [
        Row("decoder.mask_token", "decoder/mask_token/token"),
        Row("decoder.decoder_pos_embed", "decoder/position_embeddings/table"),
        *dense("decoder.decoder_embed", "decoder/embed"),
        *(dataclasses.replace(row, aliases=_aliases) for row in layers),
        *norm("decoder.decoder_norm", "decoder/norm"),
        *dense("decoder.decoder_pred", "decoder/predict"),
    ]


def _aliases(name: str) -> list[str]:
    return [_MANGLED + name.removeprefix(_LAYERS)]
