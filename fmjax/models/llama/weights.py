"""Weights map of the LLaMA family: the layouts of `LlamaFor…` and `MistralFor…`."""

from fmjax.convert import Row
from fmjax.models.decoder_rows import around, dense, norm
from fmjax.models.llama.config import LlamaConfig


def rows(config: LlamaConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    layers = [
        norm("input_layernorm"),
        *(r for p in "qkvo" for r in dense(f"self_attn.{p}_proj", config.attention_bias)),
        norm("post_attention_layernorm"),
        *(r for p in ("gate", "up", "down") for r in dense(f"mlp.{p}_proj", config.mlp_bias)),
    ]
    return around(layers, config)
