"""What a run minimises: it follows from the model's head."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmjax.core.errors import ConfigError, TokenizerError
from fmjax.data import Tokenizer
from fmjax.nn.outputs import MaskedLMOutput
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.recipes.options import Masking, Optimization
from fmjax.train import evaluate, make_step
from fmjax.train.state import TrainState

MASKED = "masked-lm"


def is_masked(config: Any) -> bool:
    """Whether a model fills gaps rather than predicts what comes next."""
    return config.head == MASKED


def choose(
    config: Any, tokenizer: Tokenizer, masking: Masking, optimization: Optimization
) -> CausalLM | MaskedLM:
    """Next-token prediction for causal heads, gap filling for masked ones.

    Raises:
      ConfigError: settings of the other objective.
      TokenizerError: gaps are wanted and the tokenizer has no mask token.
    """
    if not is_masked(config):
        if masking != Masking():
            raise ConfigError(
                f"--mask-probability and --whole-words are for models that fill gaps; this "
                f"{config.model_type} predicts the next token: leave them out, or give an encoder "
                "such as bert-base"
            )
        return CausalLM(
            z_loss=optimization.z_loss,
            router_loss=getattr(config, "router_aux_loss_coef", 0.0),
            experts_per_token=getattr(config, "num_experts_per_tok", 1),
        )
    if optimization.z_loss:
        raise ConfigError("--z-loss is for next-token prediction; leave it out for an encoder")
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise TokenizerError(
            "the tokenizer has no mask token to hide others behind; train one with `fmjax "
            "tokenizer --kind wordpiece`, or set mask_token in its tokenizer_config.json"
        )
    return MaskedLM(
        mask_token_id=mask,
        vocab_size=tokenizer.vocab_size,
        special_ids=tuple(tokenizer.special_ids),
        probability=masking.mask_probability,
        whole_words=masking.whole_words,
    )


def unigram_baseline(
    objective: MaskedLM,
    counts: np.ndarray,
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """What a model reaches in the same gaps that knows how often tokens occur and nothing else.

    It always answers with the most frequent token, and its probabilities are (n + 1) / Σ(n + 1)
    over the tokens that can be hidden.

    Args:
      objective: hides the same tokens of a batch in every evaluation.
      counts: of each id in the training text, [V].
      batches: gives the evaluation batches.
      mesh: splits them.

    Returns:
      loss in nats a hidden token, and accuracy.
    """
    counts = np.asarray(counts, np.float64) + 1
    counts[list(objective.special_ids)] = 0
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(counts / counts.sum()), -1e9)
    # An answer for every position; of equally frequent tokens the first.
    logits[np.argmax(logits)] += 1e-6

    def apply(variables: Any, input_ids: jax.Array, **_: Any) -> MaskedLMOutput:
        row = variables["params"]["logits"]
        return MaskedLMOutput(jnp.broadcast_to(row, (*input_ids.shape, len(row))), None)

    step = make_step(apply, objective, optax.identity(), mesh=mesh)
    variables = {"params": {"logits": jnp.asarray(logits, jnp.float32)}}
    zero = jnp.int32(0)
    means = evaluate(step, TrainState(zero, variables, None, {}, None, zero), batches())
    return {"loss": means["loss"], "accuracy": means["accuracy"]}


@dataclasses.dataclass(frozen=True)
class ComparedMaskedLM(MaskedLM):
    """Gap filling whose evaluations stand beside a baseline.

    Attributes:
      baseline: its loss and accuracy.
    """

    baseline: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def summarize(self, means: Mapping[str, float]) -> dict[str, float]:
        """Adds the perplexity, and the baseline as unigram_loss and unigram_accuracy."""
        others = {f"unigram_{name}": value for name, value in self.baseline.items()}
        return {**super().summarize(means), **others}


def masked_summary(means: Mapping[str, float], baseline: Mapping[str, float] | None) -> str:
    """One line: masked accuracy 0.412 (most frequent token: 0.061), loss 3.210 (unigram 5.970)."""
    accuracy, loss = (f"{means[name]:.3f}" for name in ("accuracy", "loss"))
    if baseline is None:
        return f"masked accuracy {accuracy}, loss {loss}"
    return (
        f"masked accuracy {accuracy} (most frequent token: {baseline['accuracy']:.3f}), "
        f"loss {loss} (unigram {baseline['loss']:.3f})"
    )
