"""From logits to the next token: processors as pure functions, then argmax or a draw.

Order, names and semantics are those of `transformers` (`generation/logits_process.py`), so a
generation_config.json means here what it means there. Shapes: B rows, V vocabulary; logits are
float32.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy decoding.

    Changing a number does not recompile anything; switching a processor on or off does.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token (greedy), and then `top_k`,
        `top_p` and `min_p` have no effect.
      top_k: keeps the k largest logits; 0 keeps all.
      top_p: keeps the most probable tokens up to this total (nucleus, arXiv:1904.09751); 1 keeps
        all.
      min_p: drops tokens less probable than this share of the top one (arXiv:2407.01082).
      repetition_penalty: makes tokens of the prompt and of the text so far less likely
        (arXiv:1909.05858); 1 does nothing.

    Raises:
      ConfigError: a number outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, float("inf")),
            ("top_k", 0, float("inf")),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            number = isinstance(value, int if name == "top_k" else int | float)
            if isinstance(value, bool) or not number or not low <= value <= high:
                kind = "an integer" if name == "top_k" else "a number"
                raise ConfigError(f"sampling: {name}={value!r} must be {kind} in [{low}, {high}]")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ConfigError(f"sampling: {name} must be above 0")

    @property
    def greedy(self) -> bool:
        """No randomness: the most probable token is taken."""
        return self.temperature == 0

    def numbers(self) -> dict[str, float]:
        """The settings that are at work, by name, for `process`."""
        neutral = {"repetition_penalty": 1}
        if not self.greedy:
            neutral |= {"temperature": None, "top_k": 0, "top_p": 1, "min_p": 0}
        return {
            name: float(getattr(self, name))
            for name, nothing in neutral.items()
            if getattr(self, name) != nothing
        }


GREEDY = Sampling()


def process(
    logits_BV: jax.Array,
    numbers: Mapping[str, jax.Array | float],
    seen_BV: jax.Array | None = None,
) -> jax.Array:
    """The logits after every processor that `numbers` switches on.

    Args:
      logits_BV: f32 [B, V].
      numbers: from `Sampling.numbers`.
      seen_BV: bool [B, V], the tokens of each row's prompt (padding aside) and text so far; needed
        for the repetition penalty.

    Returns:
      f32 [B, V], −∞ where a token must not be drawn.
    """
    if "repetition_penalty" in numbers:
        logits_BV = penalise(logits_BV, seen_BV, numbers["repetition_penalty"])
    if "temperature" in numbers:
        logits_BV = logits_BV / numbers["temperature"]
    if "top_k" in numbers:
        logits_BV = keep_top_k(logits_BV, numbers["top_k"])
    if "top_p" in numbers:
        logits_BV = keep_top_p(logits_BV, numbers["top_p"])
    if "min_p" in numbers:
        logits_BV = keep_min_p(logits_BV, numbers["min_p"])
    return logits_BV


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float | jax.Array) -> jax.Array:
    """Divides the positive logits of seen tokens by `penalty` and multiplies the negative ones."""
    penalised = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, penalised, logits_BV)


def keep_top_k(logits_BV: jax.Array, k: float | jax.Array) -> jax.Array:
    """−∞ below the k-th largest logit; ties with it stay."""
    return _keep_largest(logits_BV, jnp.ones_like(logits_BV), k)


def keep_top_p(logits_BV: jax.Array, p: float | jax.Array) -> jax.Array:
    """−∞ for each token if those more probable than it already hold a mass of `p`.

    Tokens of equal probability stay or go together.
    """
    return _keep_largest(logits_BV, jax.nn.softmax(logits_BV, axis=-1), p)


def _keep_largest(
    logits_BV: jax.Array, weights_BV: jax.Array, bound: float | jax.Array
) -> jax.Array:
    """−∞ for each logit if the larger ones already weigh `bound` (above 0).

    The least logit that stays is found by bisection over the 2³² bit patterns: 32 passes over the
    vocabulary, where a sort takes more (log² V on an accelerator) and is slow on CPU.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.int32)
    order_BV = bits_BV ^ ((bits_BV >> 31) & 0x7FFFFFFF)  # integers in the order of the floats

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, without overflow
        above = jnp.sum(jnp.where(order_BV > middle, weights_BV, 0), axis=-1, keepdims=True)
        return jnp.where(above < bound, low, middle + 1), jnp.where(above < bound, middle, high)

    # Nothing is above the largest logit, so the least one that stays is at most that.
    high_B1 = jnp.max(order_BV, axis=-1, keepdims=True)
    low_B1 = jnp.full_like(high_B1, jnp.iinfo(jnp.int32).min)
    least_B1, _ = jax.lax.fori_loop(0, 32, halve, (low_B1, high_B1))
    return jnp.where(order_BV >= least_B1, logits_BV, -jnp.inf)


def keep_min_p(logits_BV: jax.Array, p: float | jax.Array) -> jax.Array:
    """−∞ for tokens less probable than `p` times the most probable one."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    return jnp.where(probs_BV < p * probs_BV.max(-1, keepdims=True), -jnp.inf, logits_BV)


def draw(logits_BV: jax.Array, key: jax.Array) -> jax.Array:
    """i32 [B]: one token a row from softmax(logits).

    Row b's token depends on the key, b and its own logits only, not on the other rows.
    """
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(logits_BV.shape[0]))
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
