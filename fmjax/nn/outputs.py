"""What models return: fields under the names that Hugging Face users know."""

import flax.struct
import jax


@flax.struct.dataclass
class CausalLMOutput:
    """Of a decoder.

    Attributes:
      logits: f32 [B, T, V].
      last_hidden_state: [B, T, D], after the final norm.
      hidden_states: on request, L + 1 arrays [B, T, D]: the embeddings, then each layer's output,
        the last one normed.
      router_logits: on request, of a sparse mixture of experts: f32 [B, T, experts] for each layer.
    """

    logits: jax.Array
    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    router_logits: tuple[jax.Array, ...] | None = None
