"""Layer-wise learning-rate decay: the lower a layer, the smaller its steps."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmjax.core import tree
from fmjax.core.errors import ConfigError

BELOW: Sequence[str] = (r"(^|/)(wte|wpe|embed_tokens|\w+_embeddings|embeddings_norm)/",)
"""Paths of what lies below the first layer: the tables, and the norm over their sum."""


def layerwise_decay(
    rate: float,
    layers: int,
    *,
    stack: str = "layers|h",
    below: Sequence[str] = BELOW,
) -> optax.GradientTransformation:
    """Scales the update of layer l by rate^(L − l), l = 0 … L − 1 (arXiv:1801.06146).

    What lies below the stack gets rate^(L + 1); the final norm, the heads and everything else
    get 1, as in ELECTRA and BEiT. It goes after the optimizer, so that weight decay's part of the
    step is scaled too, as by a learning rate of the layer's own:

        optax.chain(adamw(3e-5), layerwise_decay(0.9, model.config.num_hidden_layers))

    Args:
      rate: in (0, 1]; 1 changes nothing.
      layers: L.
      stack: regex of the stack's name, all of a part of a path: scanned leaves
        ("params/layers/mlp/…", "adapter/h/attn/…") are scaled along their leading axis [L, …], and
        leaves of "layers_3" as a whole.
      below: regexes over whole paths.

    Raises:
      ConfigError: a rate out of range, no layer; at `init`, a leaf that has not L layers.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"layer-wise decay: rate {rate} must lie in (0, 1]")
    if layers < 1:
        raise ConfigError(f"layer-wise decay: {layers} layers; give the model's number of layers")
    numbered = re.compile(rf"(^|/)({stack})(_(?P<number>\d+))?/")

    def factor(path: str, x: jax.Array) -> float | jax.Array:
        found = numbered.search(path)
        if found and found["number"] is None:
            if x.ndim == 0 or x.shape[0] != layers:
                raise ConfigError(
                    f"layer-wise decay over {layers} layers, but {path} is {list(x.shape)}; "
                    "give the model's number of layers"
                )
            powers = layers - jnp.arange(layers, dtype=jnp.float32)
            return (rate**powers).reshape(-1, *[1] * (x.ndim - 1))
        if found:
            if int(found["number"]) >= layers:
                raise ConfigError(f"layer-wise decay over {layers} layers, but there is {path}")
            return rate ** (layers - int(found["number"]))
        return rate ** (layers + 1) if any(re.search(p, path) for p in below) else 1.0

    def scaled(path: str, leaf: Any) -> Any:
        return jax.tree.map(lambda x: (x * factor(path, x)).astype(x.dtype), leaf)

    def init(params: Any) -> optax.EmptyState:
        tree.map_with_path(lambda path, leaf: jax.tree.map(lambda x: factor(path, x), leaf), params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tree.map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)
