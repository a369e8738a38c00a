"""Learning rates of their own for some parameters, as factors on the optimizer's updates.

Such a transformation goes after the optimizer, so that weight decay's part of the step is scaled
too, as by a learning rate; several of them multiply.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from fmjax.core import tree
from fmjax.core.errors import ConfigError

GROUP_B = r"(^|/)(lora_b|lora_bias|magnitude|bias|scale)$"
"""What LoRA+ in PEFT counts with the factors B: besides them, all that is a vector."""

TABLES = r"(^|/)(wte|wpe|embed_tokens|\w+_embeddings)/lora_[ab]$"
"""Low-rank factors of embedding tables."""


def scale_by_path(rules: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first rule that its path matches.

        optax.chain(adamw(1e-4), scale_by_path([("lm_head/", 0.1), (r".", 1.0)]))

    Args:
      rules: ordered (regex, factor ≥ 0) over paths such as "params/lm_head/kernel".

    Raises:
      ConfigError: a factor that is negative or not finite; at `init`, a path without a rule.
    """
    for pattern, factor in rules:
        if not (math.isfinite(factor) and factor >= 0):
            raise ConfigError(f"rate rule {pattern!r}: factor {factor} must be finite and ≥ 0")

    def of(path: str, _: Any) -> float:
        return tree.flatten(tree.match_rules(rules, {path: None}, "rate rule"))[path]

    return scale_leaves(of)


def lora_plus(ratio: float, *, embedding: float | None = None) -> optax.GradientTransformation:
    """LoRA+ (arXiv:2402.12354): the factors B, which start at zero, learn faster.

        optax.chain(adamw(1e-4, weight_decay=0.0), lora_plus(16))

    The groups are those of PEFT's `create_loraplus_optimizer`: the rate of lora_b and of vectors
    (magnitudes, biases, norms that are trained whole) is `ratio` times the optimizer's, that of
    embedding tables' factors `embedding` times, and all else has the optimizer's.

    Args:
      ratio: rate of B / rate of A; the paper proposes 16.
      embedding: needed where tables have low-rank factors. PEFT gives these a rate of 1e-6 unless
        told otherwise: embedding = 1e-6 / learning_rate.

    Raises:
      ConfigError: a ratio that is not positive; at `init`, tables without `embedding`, or no
        lora_b at all.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ConfigError(f"lora_plus: ratio {ratio} must be positive")
    tables = [] if embedding is None else [(TABLES, embedding)]
    scale = scale_by_path([*tables, (GROUP_B, ratio), (r".", 1.0)])

    def init(params: Any) -> Any:
        paths = tree.flatten(params)
        if not any(path.endswith("lora_b") for path in paths):
            raise ConfigError("lora_plus: no lora_b is trained; it is for low-rank adapters")
        missing = [path for path in paths if re.search(TABLES, path)]
        if missing and embedding is None:
            raise ConfigError(
                f"lora_plus: {missing[0]} belongs to an embedding table; "
                "give its rate as embedding=, relative to the optimizer's"
            )
        return scale.init(params)

    return optax.GradientTransformation(init, scale.update)


def scale_leaves(
    factor: Callable[[str, jax.Array], Any],
    check: Callable[[Mapping[str, jax.Array]], None] = lambda flat: None,
) -> optax.GradientTransformation:
    """Multiplies each update by factor(path, leaf), which broadcasts; the dtype stays.

    `check({path: parameter})` and `factor` of every parameter run at `init`, and may raise there.
    """

    def scaled(path: str, leaf: Any) -> Any:
        return jax.tree.map(lambda x: (x * factor(path, x)).astype(x.dtype), leaf)

    def init(params: Any) -> optax.EmptyState:
        flat = tree.flatten(params)
        for path, leaf in flat.items():
            jax.tree.map(lambda x, path=path: factor(path, x), leaf)
        check(flat)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tree.map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)
