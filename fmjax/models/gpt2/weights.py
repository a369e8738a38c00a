"""Weights map of GPT-2: names and layouts of `GPT2LMHeadModel` and `GPT2For…`.

Its `Conv1D` kernels lie [in, out] in the file, as here: nothing is transposed but heads.
"""

from fmjax.convert import Row, Split
from fmjax.models.decoder_rows import under_head
from fmjax.models.gpt2.config import GPT2Config

_LAYER = "h.{layer}."


def rows(config: GPT2Config) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    qkv = (3, config.n_embd)

    def norm(hf: str, path: str) -> list[Row]:
        return [Row(f"{hf}.weight", f"{path}/scale"), Row(f"{hf}.bias", f"{path}/bias")]

    def conv1d(name: str) -> list[Row]:
        path = "h/" + name.replace(".", "/")
        return [
            Row(f"{_LAYER}{name}.weight", f"{path}/kernel"),
            Row(f"{_LAYER}{name}.bias", f"{path}/bias"),
        ]

    bare = [
        Row("wte.weight", "wte/embedding"),
        Row("wpe.weight", "wpe/embedding"),
        *norm(f"{_LAYER}ln_1", "h/ln_1"),
        # Query, key and value side by side, [in, q|k|v]; an axis of their own keeps them whole
        # when the output dimension is sharded.
        Row(f"{_LAYER}attn.c_attn.weight", "h/attn/c_attn/kernel", Split(1, qkv)),
        Row(f"{_LAYER}attn.c_attn.bias", "h/attn/c_attn/bias", Split(0, qkv)),
        *conv1d("attn.c_proj"),
        *norm(f"{_LAYER}ln_2", "h/ln_2"),
        *conv1d("mlp.c_fc"),
        *conv1d("mlp.c_proj"),
        *norm("ln_f", "ln_f"),
    ]
    return under_head(bare, config, "transformer.", "wte")
