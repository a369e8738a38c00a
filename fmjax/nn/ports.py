"""Where low-rank adapters plug into the primitives.

An adapter lives in the collection "adapter", at the path of the module that it touches. A module
without an entry there computes what it always computed; no model file knows about adapters.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION, ENCODER
from fmjax.core.errors import ConfigError
from fmjax.nn import bank_port
from fmjax.nn.dropout import dropout
from fmjax.nn.low_rank import dora_factor
from fmjax.nn.product import product

Leaves = Mapping[str, jax.Array]
_NAMES = (
    *("lora_a", "lora_b", "lora_scale", "lora_dropout", "lora_bias", "magnitude"),
    *bank_port.NAMES,
)


def leaves(module: nn.Module, below: str | None = None) -> Leaves | None:
    """The low-rank leaves of a module's adapter, or of what lies under `below` in it, or None."""
    if below is None:
        own = {n: module.get_variable(COLLECTION, n) for n in _NAMES if _has(module, n)}
    else:
        own = module.get_variable(COLLECTION, below) if _has(module, below) else {}
    return own if "lora_a" in own else None


def check_expanded(model: nn.Module) -> None:
    """Refuses an adapter that is still to be computed; the entry of every model calls it.

    Raises:
      ConfigError: an adapter with an encoder.
    """
    if model.has_variable(COLLECTION, ENCODER):
        raise ConfigError(
            'the adapter holds an "encoder" that its prefix or prompt is computed from; apply '
            "fmjax.peft.expand(spec, model, adapter), or train with fmjax.peft.applied(spec, model)"
        )


def _has(module: nn.Module, name: str) -> bool:
    return module.has_variable(COLLECTION, name)


def low_rank(
    module: nn.Module,
    x: jax.Array,
    kernel: Any,
    multiply: Callable[[jax.Array], jax.Array],
    below: str | None = None,
) -> jax.Array:
    """x W with what the module's adapter makes of it, x (W + s A B) without dropout.

    LoRA (arXiv:2106.09685): x W + s · dropout(x) A B. With a lora_bias, its s-fold is added. With a
    magnitude m (DoRA, arXiv:2402.09353) what the layer gives without its bias is multiplied by
    m / ‖W + s A B‖; under dropout, as in PEFT, x W + (m / ‖…‖) dropout(x) (W + s A B)
    − dropout(x) W.

    Args:
      module: the linear layer; its adapter holds lora_a [in, r], lora_b [r, *out], lora_scale [],
        and optionally lora_dropout [] (a rate), lora_bias [*out], magnitude [*out].
      x: the layer's input [..., in].
      kernel: W [in, *out], an array or packed.
      multiply: x → x W [..., *out].
      below: where in the module's adapter the leaves lie, if not at the top.
    """
    own = leaves(module, below)
    if own is not None and "rows" in own:
        return bank_port.low_rank(module, x, kernel, multiply, own)
    y = multiply(x)
    if own is None:
        return y
    a, b, scale = own["lora_a"], own["lora_b"], own["lora_scale"]
    dropped = dropout(module, x, own["lora_dropout"]) if "lora_dropout" in own else x
    low = product(dropped.astype(y.dtype), a.astype(y.dtype)) * scale.astype(y.dtype)
    change = product(low, b.astype(y.dtype))
    if "lora_bias" in own:
        change = change + (scale * own["lora_bias"]).astype(y.dtype)
    if "magnitude" not in own:
        return y + change
    factor = dora_factor(kernel, a, b, scale, own["magnitude"])
    if dropped is x:
        return _times(factor, y + change)
    base = multiply(dropped)
    return y + (_times(factor, base + change) - base)


def low_rank_embedding(
    module: nn.Module, ids: jax.Array, y: jax.Array, table: jax.Array
) -> jax.Array:
    """y + s · A[ids] B for rows y of an embedding table [V, D]: A [V, r], B [r, D].

    With a magnitude [D] the sum is multiplied by m / ‖table + s A B‖, the norm over V.
    """
    own = leaves(module)
    if own is None:
        return y
    if "rows" in own:
        return bank_port.low_rank_embedding(module, ids, y, table, own)
    a, b, scale = own["lora_a"], own["lora_b"], own["lora_scale"]
    low = jnp.take(a, ids, axis=0).astype(y.dtype) * scale.astype(y.dtype)
    y = y + product(low, b.astype(y.dtype))
    if "magnitude" not in own:
        return y
    return _times(dora_factor(table, a, b, scale, own["magnitude"]), y)


def low_rank_conv(
    module: nn.Module,
    x: jax.Array,
    kernel: jax.Array,
    convolve: Callable[[jax.Array, jax.Array, int], jax.Array],
    groups: int,
) -> jax.Array:
    """As `low_rank`, of a convolution: A is one to r channels like it, B one of 1 × 1 in groups.

    Args:
      module: the convolution; its adapter holds lora_a [h, w, in, r], lora_b [r / groups, out],
        lora_scale [], and optionally lora_dropout [], lora_bias [out], magnitude [out].
      x: its input [B, H, W, in].
      kernel: [h, w, in / groups, out].
      convolve: (x, kernel, groups) → [B, H', W', out], with the stride and padding of the module.
      groups: of channels that do not mix. A mixes all, and with a magnitude there is one group.

    Raises:
      ConfigError: factors that do not fit the kernel, or those of a bank.
    """
    y = convolve(x, kernel, groups)
    own = leaves(module)
    if own is None:
        return y
    a, b, scale = own["lora_a"], own["lora_b"], own["lora_scale"]
    fits = a.shape[:-1] == (*kernel.shape[:2], x.shape[-1]) and a.shape[-1] == groups * len(b)
    if not fits or "rows" in own or (groups > 1 and "magnitude" in own):
        raise ConfigError(
            f"the adapter at {'/'.join(module.path)!r} with A {a.shape} and B {b.shape} does not "
            f"fit its kernel {kernel.shape} in {groups} groups; make it with the rank a multiple "
            "of the groups, without a magnitude where there are several, and without a bank"
        )
    dropped = dropout(module, x, own["lora_dropout"]) if "lora_dropout" in own else x
    low = convolve(dropped, a, 1) * scale.astype(y.dtype)
    low = low.reshape(*low.shape[:-1], groups, len(b))
    wide = b.astype(y.dtype).reshape(len(b), groups, -1)
    change = jnp.einsum("bhwgr,rgo->bhwgo", low, wide).reshape(y.shape)
    if "lora_bias" in own:
        change = change + (scale * own["lora_bias"]).astype(y.dtype)
    if "magnitude" not in own:
        return y + change
    flat = (jax.lax.collapse(m, 0, 3) for m in (kernel, a))
    factor = dora_factor(*flat, b, scale, own["magnitude"])
    base = y if dropped is x else convolve(dropped, kernel, groups)
    return y + (_times(factor, base + change) - base)


def _times(factor: jax.Array, y: jax.Array) -> jax.Array:
    # Near 1, so of no use in bfloat16.
    return (factor * y.astype(jnp.float32)).astype(y.dtype)
