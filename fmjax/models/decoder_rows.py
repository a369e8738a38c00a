"""Rows of the weights maps of decoders: names of layers like LLaMA's, prefixes and heads of all.

Families list the rows of the bare decoder, as `LlamaModel` or `GPT2Model` alone would write them.
"""

import dataclasses
import re
from collections.abc import Sequence

from fmjax.convert import TRANSPOSE, Row
from fmjax.models.heads import HeadedConfig

LAYER = "layers.{layer}."

# What transformers puts before a decoder's names under a head, and the question answerers that
# have kept an older one.
_BASE = re.compile(r"^(model|transformer)\.")
_OLD_NAMED = ("llama", "qwen2", "qwen3")


def dense(name: str, bias: bool = False) -> list[Row]:
    """Rows of a linear layer of a layer: "mlp.up_proj" ↔ "layers/mlp/up_proj"."""
    return _linear(LAYER + name, "layers/" + name.replace(".", "/"), bias)


def norm(name: str) -> Row:
    """Row of a norm of a layer."""
    return Row(f"{LAYER}{name}.weight", f"layers/{name.replace('.', '/')}/scale")


def around(layers: Sequence[Row], config: HeadedConfig) -> list[Row]:
    """The layers' rows between the embedding's, the last norm's and the head's."""
    old = config.head == "question-answering" and config.model_type in _OLD_NAMED
    rows = [
        Row("embed_tokens.weight", "embed_tokens/embedding"),
        *layers,
        Row("norm.weight", "norm/scale"),
    ]
    return under_head(rows, config, "transformer." if old else "model.", "embed_tokens")


def under_head(rows: Sequence[Row], config: HeadedConfig, base: str, table: str) -> list[Row]:
    """The bare decoder's rows, named as they are under `config.head`, and the head's.

    Files may name the decoder's tensors as under another head.

    Args:
      rows: of the bare decoder.
      config: says the head and whether it is tied to the table.
      base: what transformers puts before the decoder's names where there is a head.
      table: path of the words' embedding.
    """
    prefix = "" if config.head is None else base
    named = [_under(prefix, row) for row in rows]
    match config.head:
        case "causal-lm" if config.tie_word_embeddings:
            return [*named, Row("lm_head.weight", f"{table}/embedding", copy=True)]
        case "causal-lm":
            return [*named, *_linear("lm_head", "lm_head")]
        case "sequence-classification":
            return [*named, *_linear("score", "score")]
        case "token-classification":
            name = config.TOKEN_CLASSIFIER
            return [*named, *_linear(name, name, bias=True)]
        case "question-answering":
            return [*named, *_linear("qa_outputs", "qa_outputs", bias=True)]
        case _:
            return named


def _linear(hf: str, path: str, bias: bool = False) -> list[Row]:
    weight = Row(f"{hf}.weight", f"{path}/kernel", TRANSPOSE)
    return [weight, Row(f"{hf}.bias", f"{path}/bias")] if bias else [weight]


def _under(prefix: str, row: Row) -> Row:
    fused = row.fused and dataclasses.replace(row.fused, hf=prefix + row.fused.hf)
    return dataclasses.replace(row, hf=prefix + row.hf, aliases=_aliases, fused=fused)


def _aliases(name: str) -> list[str]:
    bare = _BASE.sub("", name)
    return [bare, f"model.{bare}", f"transformer.{bare}"]
