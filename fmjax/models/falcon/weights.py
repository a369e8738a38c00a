"""Weights map of Falcon: names and layouts of `FalconFor…`."""

from fmjax.convert import TRANSPOSE, Chain, Permute, Row, Split
from fmjax.models.decoder_rows import under_head
from fmjax.models.falcon.config import FalconConfig

_LAYER = "h.{layer}."


def rows(config: FalconConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    # The three layouts of the reference are one: groups of query heads, each followed by its key
    # and its value. Only the number of groups differs: `num_kv_heads`, one, or one a head.
    groups = config.kv_heads
    qkv = Split(0, (groups, config.num_attention_heads // groups + 2, config.head_dim))

    def dense(name: str, outputs: Split | None = None) -> list[Row]:
        path = "h/" + name.replace(".", "/")
        kernel = Chain((outputs, Permute((3, 0, 1, 2)))) if outputs else TRANSPOSE
        weight = Row(f"{_LAYER}{name}.weight", f"{path}/kernel", kernel)
        if not config.bias:
            return [weight]
        bias = (f"{_LAYER}{name}.bias", f"{path}/bias")
        return [weight, Row(*bias, outputs) if outputs else Row(*bias)]

    def norm(hf: str, path: str) -> list[Row]:
        return [Row(f"{hf}.weight", f"{path}/scale"), Row(f"{hf}.bias", f"{path}/bias")]

    bare = [
        Row("word_embeddings.weight", "word_embeddings/embedding"),
        *(row for name in config.norms for row in norm(f"{_LAYER}{name}", f"h/{name}")),
        *dense("self_attention.query_key_value", qkv),
        *dense("self_attention.dense"),
        *dense("mlp.dense_h_to_4h"),
        *dense("mlp.dense_4h_to_h"),
        *norm("ln_f", "ln_f"),
    ]
    return under_head(bare, config, "transformer.", "word_embeddings")
