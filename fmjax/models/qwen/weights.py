"""Weights map of the Qwen family: the layouts of `Qwen2For…` and `Qwen3For…`."""

from fmjax.convert import Row
from fmjax.models.decoder_rows import around, dense, norm
from fmjax.models.qwen.config import QwenConfig


def rows(config: QwenConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    norms = ("self_attn.q_norm", "self_attn.k_norm") if config.qk_norm else ()
    layers = [
        norm("input_layernorm"),
        *(r for p in "qkv" for r in dense(f"self_attn.{p}_proj", config.qkv_bias)),
        *dense("self_attn.o_proj", config.attention_bias),
        *(norm(name) for name in norms),
        norm("post_attention_layernorm"),
        *(r for p in ("gate", "up", "down") for r in dense(f"mlp.{p}_proj")),
    ]
    return around(layers, config)
