"""Optimizers: Optax, with the masks that follow from parameter paths."""

import math
from collections.abc import Sequence
from typing import Any

import optax

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.train.compact_adamw import MOMENT_DTYPES, compact_adamw

DECAY: Sequence[tuple[str, bool]] = (
    (r"(^|/)(kernel|weight|embedding|lora_a|lora_b)$", True),
    (r".", False),
)
"""Weight decay acts on what is multiplied by activations or looked up (matrices, embeddings of
tokens and of their positions, low-rank factors), and not on biases and norm scales, nor, as in
DeiT, on the positions and the class token of an image. By name, not by rank: parameters of scanned
layers have one dimension more than their layer's."""


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.1,
    decay: Sequence[tuple[str, bool]] = DECAY,
    mu_dtype: Any = None,
    moment_dtype: str | None = None,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) with the defaults of language-model pretraining (b2 .95, decay .1).

    Clipping belongs to the step, not here.

    Args:
      learning_rate: a float or a schedule, see `fmjax.train.schedules`.
      b1, b2, eps: moments' decay and the denominator's floor.
      weight_decay: decoupled; each update subtracts learning_rate · weight_decay · parameter.
        A float or a schedule, such as `schedules.cosine(0.04, 0.4, steps)`.
      decay: ordered (regex, bool) over paths such as "params/layers/mlp/up_proj/kernel"; the first
        match decides, and every path must be covered.
      mu_dtype: of the first moment; None is the parameter's.
      moment_dtype: of both moments: "float32", "bfloat16" or "int8", see
        `fmjax.train.compact_adamw`. None keeps them in the parameter's dtype and computes there.

    Raises:
      ConfigError: a rate, a decay or a moment out of range, an unknown dtype of the moments; at
        `init`, a path without a rule.
    """
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not callable(value) and not 0 <= value < math.inf:
            raise ConfigError(f"{name} {value} must be a number that is not negative")
    if not 0 <= eps < math.inf:
        raise ConfigError(f"adamw: eps {eps} must be a number that is not negative")
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ConfigError(f"adamw: b1 {b1} and b2 {b2} must lie in [0, 1)")
    shared = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    shared["mask"] = lambda params: tree.match_rules(decay, params, "decay rule")
    if moment_dtype is None:
        return optax.adamw(learning_rate, mu_dtype=mu_dtype, **shared)
    if mu_dtype is not None:
        raise ConfigError("adamw: moment_dtype is of both moments; leave mu_dtype away")
    if moment_dtype not in MOMENT_DTYPES:
        raise ConfigError(
            f"moment_dtype {moment_dtype!r} is unknown; one of {', '.join(MOMENT_DTYPES)}, or None"
        )
    return compact_adamw(learning_rate, moment_dtype, **shared)
