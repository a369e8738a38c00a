"""The BERT encoder (arXiv:1810.04805) and RoBERTa's variant (arXiv:1907.11692), with their heads.

Shapes: B batch, T tokens, D hidden size, H heads, K head size, V vocabulary, N labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.bert.config import BertConfig
from fmjax.models.bert.positions import default_positions, first_position
from fmjax.nn import prefix_port, prompt_port
from fmjax.nn.attention import attention
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.embed import Embed
from fmjax.nn.head import MaskedLMHead
from fmjax.nn.masks import Mask
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import (
    EncoderOutput,
    MaskedLMOutput,
    PreTrainingOutput,
    QuestionAnsweringOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from fmjax.nn.ports import check_expanded
from fmjax.nn.stack import apply_layers

STACK = "layers"

Output = (
    EncoderOutput
    | MaskedLMOutput
    | PreTrainingOutput
    | SequenceClassifierOutput
    | TokenClassifierOutput
    | QuestionAnsweringOutput
)


class SelfAttention(nn.Module):
    """Multi-head attention in both directions: x [B, T, D] → [B, T, D]."""

    config: BertConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        cfg, ex = self.config, self.execution
        B, T, D = x.shape
        init = nn.initializers.normal(cfg.initializer_range)

        def project(name: str) -> jax.Array:
            dense = Dense(D, ("embed", "heads"), True, init, ex, name=name)
            return dense(x).reshape(B, T, cfg.num_attention_heads, cfg.head_dim)

        out = attention(
            self,
            project("query"),
            project("key"),
            project("value"),
            mask,
            dropout_rate=cfg.attention_probs_dropout_prob,
            implementation=ex.attention,
        )
        return Dense(D, ("heads", "embed"), True, init, ex, name="output")(out)


class Layer(nn.Module):
    """Attention and MLP; each is added to its input, and the sum is normed."""

    config: BertConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, own: None) -> jax.Array:
        cfg, ex = self.config, self.execution
        y = SelfAttention(cfg, ex, name="attention")(x, mask)
        y = dropout(self, y, cfg.hidden_dropout_prob)
        x = LayerNorm(cfg.layer_norm_eps, ex, name="attention_norm")(x + y)
        init = nn.initializers.normal(cfg.initializer_range)
        mlp = MLP(
            cfg.intermediate_size,
            cfg.hidden_act,
            ("intermediate", "output"),
            kernel_init=init,
            out_init=init,
            execution=ex,
            name="mlp",
        )
        y = dropout(self, mlp(x), cfg.hidden_dropout_prob)
        x = LayerNorm(cfg.layer_norm_eps, ex, name="mlp_norm")(x + y)
        return constrain(x, ("batch", "seq", "act_embed"))


class Bert(nn.Module):
    """BERT or RoBERTa with the head that the config names.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: BertConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Runs the encoder and the head.

        Args:
          input_ids: i32 [B, T].
          attention_mask: [B, T], 1 where there is a token.
          token_type_ids: i32 [B, T], 0 in the first sentence of a pair and 1 in the second;
            default 0.
          position_ids: i32 [B, T], rows of the position table; default `default_positions`. An
            adapter's prefix comes before position 0.
          segment_ids: i32 [B, T], texts packed into a row (0 is padding).
          output_hidden_states: return every layer's output too.

        Returns:
          The output of `config.head`, see `fmjax.nn.outputs`.

        Raises:
          DataError: an input that has not the shape of input_ids.
          ConfigError: an adapter that does not fit.
        """
        cfg, ex = self.config, self.execution
        check_expanded(self)
        _check_shapes(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            segment_ids=segment_ids,
        )
        mask = Mask(
            causal=False,
            valid=None if attention_mask is None else attention_mask.astype(bool),
            segments=None if segment_ids is None else (segment_ids, segment_ids),
        )
        init = nn.initializers.normal(cfg.initializer_range)

        def table(rows: int, axis: str | None, name: str) -> Embed:
            return Embed(rows, cfg.hidden_size, (axis, "embed"), init, ex, name=name)

        words = table(cfg.vocab_size, "vocab", "word_embeddings")
        places = table(cfg.max_position_embeddings, "positions", "position_embeddings")
        types = table(cfg.type_vocab_size, None, "token_type_embeddings")
        given = position_ids
        prefix = prefix_port.offset(self, input_ids.shape[1], position_ids)
        if position_ids is None:
            position_ids = default_positions(cfg, input_ids, segment_ids, prefix)
        else:
            position_ids = position_ids + prefix
        mask = mask.replace(virtual=prefix)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        if P := prompt_port.of(self, input_ids.shape[1], given):
            if segment_ids is not None:
                raise ConfigError(
                    "a prompt that attends to the tokens cannot serve several texts of a row; "
                    "leave segment_ids out and do not pack"
                )
            first = first_position(cfg)
            input_ids, position_ids, mask = prompt_port.enter(
                P, input_ids, position_ids, mask, first
            )
            token_type_ids = prompt_port.put_before(P, token_type_ids, 0)
        x0 = words(input_ids) + types(token_type_ids) + places(position_ids)
        x0 = LayerNorm(cfg.layer_norm_eps, ex, name="embeddings_norm")(x0)
        x0 = constrain(dropout(self, x0, cfg.hidden_dropout_prob), ("batch", "seq", "act_embed"))
        x, outputs = apply_layers(
            lambda name: Layer(cfg, ex, name=name),
            cfg.num_hidden_layers,
            x0,
            mask,
            name=STACK,
            execution=ex,
            collect=output_hidden_states,
        )
        return _head(self, x, words, (x0, *outputs) if output_hidden_states else None, P)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return {"input_ids": jnp.zeros((1, 2), jnp.int32)}


def _head(
    model: Bert,
    encoded: jax.Array,
    words: Embed,
    hidden_states: tuple[jax.Array, ...] | None,
    virtual: int = 0,
) -> Output:
    """What stands on the encoder's output; called inside the model's `__call__`.

    Args:
      model: with the config.
      encoded: [B, P + T, D].
      words: the table.
      hidden_states: of all layers, [B, P + T, D], or None.
      virtual: P, tokens of an adapter's prompt. Poolers read the first slot, as in PEFT; what is
        returned of each token is returned of the real ones.
    """
    cfg, ex = model.config, model.execution
    roberta = cfg.model_type == "roberta"
    init = nn.initializers.normal(cfg.initializer_range)

    x = encoded[:, virtual:]
    if hidden_states is not None:
        hidden_states = tuple(h[:, virtual:] for h in hidden_states)

    def pooled(rate: float = 0.0) -> jax.Array:
        dense = Dense(cfg.hidden_size, ("embed", None), True, init, ex, name="pooler")
        return jnp.tanh(dense(dropout(model, encoded[:, 0], rate)))

    def classify(y: jax.Array, labels: int, name: str) -> jax.Array:
        return Dense(labels, ("embed", None), True, init, ex, jnp.float32, name=name)(y)

    def predict() -> jax.Array:
        # RoBERTa's head has the GELU whatever hidden_act says.
        act = "gelu" if roberta else cfg.hidden_act
        return MaskedLMHead(act, cfg.layer_norm_eps, init, ex, name="predictions")(x, words)

    match cfg.head:
        case "masked-lm":
            return MaskedLMOutput(predict(), x, hidden_states)
        case "pretraining":
            follows = classify(pooled(), 2, "seq_relationship")
            return PreTrainingOutput(predict(), follows, x, hidden_states)
        case "sequence-classification":
            # RoBERTa's classification head is BERT's pooler and classifier, dropout before both.
            y = dropout(model, pooled(cfg.classifier_rate if roberta else 0.0), cfg.classifier_rate)
            return SequenceClassifierOutput(
                classify(y, cfg.num_labels, "classifier"), x, hidden_states
            )
        case "token-classification":
            y = dropout(model, x, cfg.classifier_rate)
            return TokenClassifierOutput(
                classify(y, cfg.num_labels, "classifier"), x, hidden_states
            )
        case "question-answering":
            ends = classify(x, 2, "qa_outputs")
            return QuestionAnsweringOutput(ends[..., 0], ends[..., 1], x, hidden_states)
        case _:
            return EncoderOutput(x, pooled(), hidden_states)


def _check_shapes(input_ids: jax.Array, **others: jax.Array | None) -> None:
    for name, x in others.items():
        if x is not None and x.shape != input_ids.shape:
            raise DataError(f"{name} {x.shape} must have the shape of input_ids {input_ids.shape}")
