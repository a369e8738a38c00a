"""Learning rates by layer: the lower a layer, the smaller its steps, down to none."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmjax.core.errors import ConfigError
from fmjax.train.rates import scale_leaves

STACK = "layers|h"
"""Names of the stack of layers, as a regex."""

BELOW: Sequence[str] = (
    r"(^|/)(wte|wpe|embed_tokens|\w+_embeddings|embeddings_norm)/",
    r"(^|/)(cls|mask|register)_tokens?/",
    r"(^|/)((token|position|patch|class)_embedding|pre_layrnorm)/",
)
"""Paths of what lies below the first layer: tables, patches, tokens, the norm over their sum."""


def layerwise_decay(
    rate: float,
    layers: int,
    *,
    stack: str = STACK,
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
    factor = _by_layer("layer-wise decay", layers, stack, lambda layer: rate ** (layers - layer))

    def of(path: str, x: jax.Array) -> float | jax.Array:
        found = factor(path, x)
        if found is not None:
            return found
        return rate ** (layers + 1) if any(re.search(p, path) for p in below) else 1.0

    return scale_leaves(of)


def freeze_layers(
    lowest: int,
    layers: int,
    *,
    stack: str = STACK,
) -> optax.GradientTransformation:
    """Leaves the lowest layers as they are: their updates, weight decay's part included, are 0.

    A stack of scanned layers is one leaf [L, …], which rules over paths cannot divide. What lies
    below the stack is frozen by `fmjax.train.freeze`, better than here: these layers still have
    gradients, which count in the norm that the step clips by, and moments. It goes after the
    optimizer:

        optax.chain(adamw(3e-5), freeze_layers(4, model.config.num_hidden_layers))

    Args:
      lowest: layers 0 … lowest − 1 stand still.
      layers: L.
      stack: see `layerwise_decay`.

    Raises:
      ConfigError: more layers frozen than there are; at `init`, a leaf that has not L layers, or
        parameters none of which belongs to a layer.
    """
    if not 0 <= lowest <= layers:
        raise ConfigError(f"freeze_layers: {lowest} of {layers} layers cannot be frozen")
    factor = _by_layer(
        "freeze_layers", layers, stack, lambda layer: jnp.where(layer < lowest, 0.0, 1.0)
    )

    def of(path: str, x: jax.Array) -> float | jax.Array:
        found = factor(path, x)
        return 1.0 if found is None else found

    def check(flat: Mapping[str, Any]) -> None:
        if not any(factor(path, x) is not None for path, x in flat.items()):
            raise ConfigError(
                f"freeze_layers: no parameter belongs to a stack named {stack!r}; give stack="
            )

    return scale_leaves(of, check)


def _by_layer(
    what: str, layers: int, stack: str, rate: Callable[[Any], Any]
) -> Callable[[str, jax.Array], Any]:
    """(path, leaf) → rate(layer), for a scanned leaf one for each layer; None outside the stack."""
    numbered = re.compile(rf"(^|/)({stack})(_(?P<number>\d+))?/")

    def factor(path: str, x: jax.Array) -> Any:
        found = numbered.search(path)
        if found is None:
            return None
        if found["number"] is None:
            if x.ndim == 0 or x.shape[0] != layers:
                raise ConfigError(
                    f"{what} over {layers} layers, but {path} is {list(x.shape)}; "
                    "give the model's number of layers"
                )
            each = rate(jnp.arange(layers, dtype=jnp.float32))
            return each.reshape(-1, *[1] * (x.ndim - 1))
        if int(found["number"]) >= layers:
            raise ConfigError(f"{what} over {layers} layers, but there is {path}")
        return rate(int(found["number"]))

    return factor
