"""Weights map of the LLaMA family: the layouts of `LlamaForCausalLM` and `MistralForCausalLM`."""

from fmjax.convert import TRANSPOSE, Row
from fmjax.models.llama.config import LlamaConfig

_LAYER = "model.layers.{layer}."


def rows(config: LlamaConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""

    def dense(name: str, bias: bool) -> list[Row]:
        path = "layers/" + name.replace(".", "/")
        weight = Row(f"{_LAYER}{name}.weight", f"{path}/kernel", TRANSPOSE)
        return [weight, Row(f"{_LAYER}{name}.bias", f"{path}/bias")] if bias else [weight]

    def norm(name: str) -> Row:
        return Row(f"{_LAYER}{name}.weight", f"layers/{name}/scale")

    return [
        Row("model.embed_tokens.weight", "embed_tokens/embedding"),
        norm("input_layernorm"),
        *(r for p in "qkvo" for r in dense(f"self_attn.{p}_proj", config.attention_bias)),
        norm("post_attention_layernorm"),
        *(r for p in ("gate", "up", "down") for r in dense(f"mlp.{p}_proj", config.mlp_bias)),
        Row("model.norm.weight", "norm/scale"),
        Row("lm_head.weight", "embed_tokens/embedding", copy=True)
        if config.tie_word_embeddings
        else Row("lm_head.weight", "lm_head/kernel", TRANSPOSE),
    ]
