"""What an objective asks of a language model's head in place of the logits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Score = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class TokenSums:
    """A sum over tokens that the head takes part by part, so that no [B, T, V] logits exist.

    Attributes:
      score: (logits f32 [B, C, V], *arrays [B, C]) → (loss f32 [], {name: f32 []}), sums over the
        tokens that it is given. The loss alone is differentiable.
      arrays: what `score` needs beside the logits: each [B, T].
      chunk: tokens whose logits exist at one time on a device; None lets the head choose, which
        gives plain logits where they are small.
    """

    score: Score
    arrays: tuple[Any, ...]
    chunk: int | None = None
