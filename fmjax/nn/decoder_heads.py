"""What stands on a decoder: one head for all families, and the output that it makes.

Shapes: B batch, T new tokens, D hidden size, V vocabulary, N labels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.token_sums import TokenSums
from fmjax.nn import sequence
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.embed import Embed
from fmjax.nn.head import lm_head
from fmjax.nn.masks import Mask
from fmjax.nn.outputs import (
    CausalLMOutput,
    DecoderOutput,
    QuestionAnsweringOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from fmjax.nn.pooling import last_token

Output = (
    CausalLMOutput
    | DecoderOutput
    | SequenceClassifierOutput
    | TokenClassifierOutput
    | QuestionAnsweringOutput
)


class Decoded(NamedTuple):
    """What a family computes, beneath any head.

    Attributes:
      embedded: [B, T, D], what went into the first layer.
      layers: [B, T, D], every layer's output, if they were collected.
      last: [B, T, D], after the final norm.
      table: of the words; it serves as the language-model head where the config ties them.
      router_logits: f32 [B, T, experts] of each layer, or None.
      softcap: bound of the language model's logits, or None.
    """

    embedded: jax.Array
    layers: Sequence[jax.Array]
    last: jax.Array
    table: Embed
    router_logits: tuple[jax.Array, ...] | None = None
    softcap: float | None = None

    def without(self, slots: int) -> "Decoded":
        """The same of all but the first slots."""
        return self._each(lambda x: x[:, slots:])

    def in_order(self) -> "Decoded":
        """The same in the order of the text, of tokens in zigzag order (`fmjax.nn.sequence`)."""
        return self._each(lambda x: sequence.zigzag(x, inverse=True))

    def _each(self, f: Callable[[jax.Array], jax.Array]) -> "Decoded":
        embedded, layers, last, router_logits = jax.tree.map(
            f, (self.embedded, self.layers, self.last, self.router_logits)
        )
        return self._replace(
            embedded=embedded, layers=layers, last=last, router_logits=router_logits
        )


def put_head(
    model: nn.Module,
    decoded: Decoded,
    input_ids: jax.Array,
    mask: Mask,
    output_hidden_states: bool,
    logits_to_keep: int,
    token_sums: TokenSums | None = None,
) -> Output:
    """The head of `model.config`, its modules made inside the model's compact `__call__`.

    A sequence is classified by its last token. Which that is says the attention mask, else the
    segment ids (0 is padding), else the config's pad_token_id, else it is the last slot; padding
    may be on either side. transformers always goes by pad_token_id: it differs where a text ends
    in that token, and where there is none it refuses batches.

    Args:
      model: with the `config` and the `execution`.
      decoded: what stands beneath the head.
      input_ids: i32 [B, T].
      mask: of the layers, for what it says of padding.
      output_hidden_states: keep every layer's output.
      logits_to_keep: of this many last positions only; 0 means all.
      token_sums: sums over the logits of a language model that are wanted in their place.

    Raises:
      ConfigError: logits_to_keep or token_sums for another head than the language model's, or
        both.
    """
    cfg, ex, x = model.config, model.execution, decoded.last
    init = nn.initializers.normal(cfg.initializer_range)
    if token_sums is not None and (cfg.head != "causal-lm" or logits_to_keep):
        raise ConfigError(
            f"token_sums is for all positions of head='causal-lm', but this model has head="
            f"{cfg.head!r} and logits_to_keep={logits_to_keep}; leave one of them out"
        )
    if logits_to_keep and cfg.head != "causal-lm":
        raise ConfigError(
            f"logits_to_keep={logits_to_keep} is for head='causal-lm', but this model has "
            f"head={cfg.head!r}; leave it out"
        )

    def classify(y: jax.Array, labels: int, name: str, bias: bool) -> jax.Array:
        return Dense(labels, ("embed", None), bias, init, ex, jnp.float32, name=name)(y)

    common: dict[str, Any] = {
        "last_hidden_state": x,
        "hidden_states": (
            (decoded.embedded, *decoded.layers[:-1], x) if output_hidden_states else None
        ),
        "router_logits": decoded.router_logits,
    }
    match cfg.head:
        case "causal-lm":
            tied = decoded.table if cfg.tie_word_embeddings else None
            logits, sums = lm_head(
                x, cfg.vocab_size, tied, init, ex, logits_to_keep, decoded.softcap, token_sums
            )
            return CausalLMOutput(logits, **common, token_sums=sums)
        case "sequence-classification":
            pooled = last_token(x, _tokens(mask, input_ids, cfg.pad_token_id))
            return SequenceClassifierOutput(
                classify(pooled, cfg.num_labels, "score", False), **common
            )
        case "token-classification":
            y = dropout(model, x, cfg.classifier_rate)
            return TokenClassifierOutput(
                classify(y, cfg.num_labels, cfg.TOKEN_CLASSIFIER, True), **common
            )
        case "question-answering":
            ends = classify(x, 2, "qa_outputs", True)
            return QuestionAnsweringOutput(ends[..., 0], ends[..., 1], **common)
        case _:
            return DecoderOutput(**common)


def _tokens(mask: Mask, input_ids: jax.Array, pad_token_id: int | None) -> jax.Array | None:
    """bool [B, T], which of the new slots hold a token; None: all."""
    if mask.valid is not None:
        return jax.lax.dynamic_slice_in_dim(mask.valid, mask.offset, input_ids.shape[1], 1)
    if mask.segments is not None:
        return mask.segments[0] > 0
    return None if pad_token_id is None else input_ids != pad_token_id
