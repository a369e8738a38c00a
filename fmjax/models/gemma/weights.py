"""Weights map of the Gemma family: the layouts of `GemmaFor…` and `Gemma2For…`."""

from fmjax.convert import Row
from fmjax.models.decoder_rows import around, dense, norm
from fmjax.models.gemma.config import GemmaConfig


def rows(config: GemmaConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    layers = [
        *(r for p in "qkvo" for r in dense(f"self_attn.{p}_proj", config.attention_bias)),
        *(r for p in ("gate", "up", "down") for r in dense(f"mlp.{p}_proj")),
        *(norm(name) for name in norms),
    ]
    return around(layers, config)
