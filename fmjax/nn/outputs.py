"""What models return: fields under the names that Hugging Face users know.

Shapes: B batch, T tokens, D hidden size, V vocabulary, N labels. `last_hidden_state` and
`hidden_states` are the same in all of them; so are `router_logits` in those of decoders.
"""

import flax.struct
import jax


@flax.struct.dataclass
class CausalLMOutput:
    """Of a decoder that predicts the next token.

    Attributes:
      logits: f32 [B, T, V]; None where `token_sums` stand in their place.
      last_hidden_state: [B, T, D], after the final norm.
      hidden_states: on request, L + 1 arrays [B, T, D]: the embeddings, then each layer's output,
        the last one normed.
      router_logits: on request, of a sparse mixture of experts: f32 [B, T, experts] for each layer.
      token_sums: on request, (loss f32 [], {name: f32 []}), see `fmjax.core.token_sums`.
    """

    logits: jax.Array | None
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    router_logits: tuple[jax.Array, ...] | None = None
    token_sums: tuple[jax.Array, dict[str, jax.Array]] | None = None


@flax.struct.dataclass
class DecoderOutput:
    """Of a decoder without a head."""

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    router_logits: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class EncoderOutput:
    """Of an encoder without a head: pooler_output [B, D], made from the first token."""

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class MaskedLMOutput:
    """Of an encoder that fills gaps: logits f32 [B, T, V]."""

    logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class PreTrainingOutput:
    """Of BERT's pretraining.

    Attributes:
      prediction_logits: f32 [B, T, V], of the masked tokens; `logits` is another name for them.
      seq_relationship_logits: f32 [B, 2]; 0 says that the second sentence follows the first.
    """

    prediction_logits: jax.Array
    seq_relationship_logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None

    @property
    def logits(self) -> jax.Array:
        """What masked language models predict, under the name that they share."""
        return self.prediction_logits


@flax.struct.dataclass
class SequenceClassifierOutput:
    """One answer a sequence: logits f32 [B, N] (for a regression, the numbers)."""

    logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    router_logits: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class TokenClassifierOutput:
    """One answer a token: logits f32 [B, T, N]."""

    logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    router_logits: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class QuestionAnsweringOutput:
    """Where the answer starts and where its last token is: logits f32 [B, T] each."""

    start_logits: jax.Array
    end_logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    router_logits: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class ImageClassifierOutput:
    """One answer an image: logits f32 [B, N]; last_hidden_state of the patches and other tokens."""

    logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class MaskedAutoencoderOutput:
    """Of a masked autoencoder. Shapes besides: P patches, p the patch's side, C channels.

    Attributes:
      logits: f32 [B, P, p · p · C], pixels of every patch, row by row, channels last.
      mask: f32 [B, P], 1 where a patch was hidden from the encoder.
      ids_restore: i32 [B, P], the place of each patch in the shuffled order whose first ones are
        kept.
      last_hidden_state: [B, 1 + kept, D] of the encoder, after the final norm.
      hidden_states: on request, of the encoder: the embeddings, then each layer's output.
    """

    logits: jax.Array
    mask: jax.Array
    ids_restore: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class ContrastiveOutput:
    """Of a model of images and texts; what belongs to an input that was not given is None.

    Shapes: I images, J texts, P size of the common space.

    Attributes:
      logits_per_image: f32 [I, J], exp(logit_scale) · image_embeds text_embedsᵀ + logit_bias.
      logits_per_text: f32 [J, I], their transpose.
      image_embeds, text_embeds: f32 [I, P] and [J, P], of length 1.
      image_features, text_features: the same before they are brought to that length.
      logit_scale: f32 [], the parameter itself: the logarithm of the factor.
      logit_bias: f32 [], or None in models without one.
      vision_model_output, text_model_output: what the encoders gave, `EncoderOutput`.
    """

    logits_per_image: jax.Array | None = None
    logits_per_text: jax.Array | None = None
    image_embeds: jax.Array | None = None
    text_embeds: jax.Array | None = None
    image_features: jax.Array | None = None
    text_features: jax.Array | None = None
    logit_scale: jax.Array | None = None
    logit_bias: jax.Array | None = None
    vision_model_output: EncoderOutput | None = None
    text_model_output: EncoderOutput | None = None


@flax.struct.dataclass
class ProjectionOutput:
    """Of an encoder with a head for pretraining, see `fmjax.nn.projection`.

    Attributes:
      image_embeds: f32 [B, K], the head's output for each image.
      pooler_output: [B, D], what the head read: the features that are used after pretraining.
      last_hidden_state: [B, T, D]; None where the encoder has no tokens.
      patch_embeds: on request, f32 [G, M, K], the head's output for chosen patches.
    """

    image_embeds: jax.Array
    pooler_output: jax.Array
    last_hidden_state: jax.Array | None = None
    patch_embeds: jax.Array | None = None
