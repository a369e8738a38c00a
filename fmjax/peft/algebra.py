"""Adapters as vectors: sums, multiples and mixtures of LoRA, which again are LoRA.

What an adapter adds to a matrix is s A B, so a weighted sum of adapters adds Σ w s A B: exactly the
product of the factors set side by side, whose rank is the sum of the ranks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft import factors
from fmjax.peft.adapter import abstract_on
from fmjax.peft.base import Base
from fmjax.peft.config import LoRA
from fmjax.peft.factors import Factors
from fmjax.peft.lora import constants

Pair = tuple[LoRA, tree.Tree]
Method = Literal["cat", "svd", "linear"]
METHODS: tuple[Method, ...] = ("cat", "svd", "linear")
_LOW_RANK = ("lora_a", "lora_b", "lora_scale", "lora_dropout")


def combine(
    model: nn.Module,
    pairs: Sequence[Pair],
    weights: Sequence[float],
    *,
    method: Method = "cat",
    rank: int | None = None,
    params: tree.Tree | None = None,
) -> tuple[LoRA, dict[str, Any]]:
    """The adapter that adds Σ wᵢ · (what adapter i adds).

    Copies (`modules_to_save`, biases) are taken as differences from the base: those of a mixture
    are base + Σ wᵢ (copyᵢ − base), and an adapter without a copy counts as the base.

    Args:
      model: under all of them.
      pairs: (spec, adapter) each; scales, ranks and layers may differ.
      weights: wᵢ, one for each pair.
      method: "cat" is exact, and its ranks are the sums of the ranks. "svd" is the nearest adapter
        of `rank` in the Frobenius norm, layer by layer. "linear" adds up A's and B's themselves,
        each times √|w s|, which is exact for adapters that share one of the factors and otherwise
        has cross terms; ranks must agree. The three are PEFT's of the same names.
      rank: of "svd"; default the largest of the adapters'.
      params: of the base, needed where copies are mixed with weights whose sum is not 1.

    Returns:
      (spec, adapter), which `fmjax.peft.save` writes. Scales are 1 (alpha = rank).

    Raises:
      ConfigError: adapters that are no such vectors (DoRA, other methods), arguments that do not
        fit together, copies without `params`.
    """
    _check(pairs, weights, method, rank)
    base = Base.of(model)
    layers: dict[str, list[tuple[float, Factors]]] = {}
    for (spec, adapter), weight in zip(pairs, weights, strict=True):
        for name, own in factors.split(spec, base, adapter).items():
            layers.setdefault(name, []).append((float(weight), own))
    if method == "svd" and rank is None:
        rank = max(own.rank for terms in layers.values() for _, own in terms)
    joined = {name: _joined(name, terms, method, rank) for name, terms in layers.items()}
    order = [name for name, _, _ in factors.named(base) if name in joined]
    specs = [spec for spec, _ in pairs]
    rates = {spec.dropout for spec in specs}
    biases = {spec.bias for spec in specs}
    spec, adapter = factors.join(
        base,
        {name: joined[name] for name in order},
        dropout=rates.pop() if len(rates) == 1 else 0.0,
        modules_to_save=tuple(dict.fromkeys(n for s in specs for n in s.modules_to_save)),
        bias=next(b for b in ("all", "lora_only", "none") if b in biases),
    )
    copies = _copies(spec, base, pairs, weights, params)
    return spec, jax.tree.map(jnp.asarray, tree.combine(adapter, tree.unflatten(copies)))


def add(
    model: nn.Module,
    *pairs: Pair,
    method: Method = "cat",
    rank: int | None = None,
    params: tree.Tree | None = None,
) -> tuple[LoRA, dict[str, Any]]:
    """The adapter that adds what all of them add; see `combine`."""
    return combine(model, pairs, [1.0] * len(pairs), method=method, rank=rank, params=params)


def interpolate(
    model: nn.Module,
    first: Pair,
    second: Pair,
    t: float,
    *,
    method: Method = "cat",
    rank: int | None = None,
    params: tree.Tree | None = None,
) -> tuple[LoRA, dict[str, Any]]:
    """(1 − t) · first + t · second; see `combine`."""
    return combine(model, [first, second], [1.0 - t, t], method=method, rank=rank, params=params)


def scale(
    model: nn.Module, spec: LoRA, adapter: tree.Tree, factor: float, params: tree.Tree | None = None
) -> tuple[LoRA, dict[str, Any]]:
    """The adapter that adds `factor` times as much: its alphas change, its factors do not.

    Args:
      model: under it.
      spec, adapter: of it.
      factor: any finite number.
      params: of the base, needed where the adapter has copies.

    Raises:
      ConfigError: as `combine`.
    """
    _check([(spec, adapter)], [factor], "cat", None)
    base = Base.of(model)
    scaled = dataclasses.replace(
        spec,
        alpha=spec.alpha * factor,
        alpha_pattern=tuple((key, alpha * factor) for key, alpha in spec.alpha_pattern),
    )
    copies = _copies(scaled, base, [(spec, adapter)], [factor], params)
    flat = tree.flatten(adapter) | copies | constants(scaled, base)
    return scaled, jax.tree.map(jnp.asarray, tree.unflatten(flat))


def _check(pairs: Sequence[Pair], weights: Sequence[float], method: str, rank: int | None) -> None:
    if not pairs or len(pairs) != len(weights):
        raise ConfigError(f"{len(pairs)} adapters have {len(weights)} weights; give one for each")
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}")
    if rank is not None and (method != "svd" or type(rank) is not int or rank < 1):
        raise ConfigError(f"rank={rank!r} must be a positive integer, and goes with method='svd'")
    for weight in weights:
        if not np.isfinite(weight):
            raise ConfigError(f"weight {weight!r} must be a finite number")
    for spec, _ in pairs:
        if not isinstance(spec, LoRA):
            raise ConfigError(
                f"{type(spec).__name__} adapters cannot be added; only LoRA's are linear"
            )
        for name in ("use_dora", "lora_bias"):
            if getattr(spec, name):
                raise ConfigError(
                    f"an adapter with {name} is no multiple of its factors and cannot be added; "
                    "merge it"
                )


def _joined(
    name: str, terms: list[tuple[float, Factors]], method: str, rank: int | None
) -> Factors:
    if method == "linear":
        if len(ranks := {own.rank for _, own in terms}) > 1:
            raise ConfigError(
                f"the adapters have the ranks {sorted(ranks)} at {name!r}, and method='linear' "
                "adds equal ones; use 'cat' or 'svd'"
            )
        roots = [abs(weight * own.scale) ** 0.5 for weight, own in terms]
        signs = [np.sign(weight * own.scale) for weight, own in terms]
        parts = list(zip(roots, signs, terms, strict=True))
        a = sum(root * sign * own.a for root, sign, (_, own) in parts)
        b = sum(root * own.b for root, _, (_, own) in parts)
        return Factors(np.asarray(a, np.float32), np.asarray(b, np.float32))
    a = np.concatenate([np.float32(weight * own.scale) * own.a for weight, own in terms], -1)
    b = np.concatenate([own.b for _, own in terms], -2)
    return Factors(a, b) if method == "cat" else _truncated(a, b, rank)


def _truncated(a: np.ndarray, b: np.ndarray, rank: int) -> Factors:
    """The nearest factors of at most this rank; A B itself, [*lead, in, out], is never formed."""
    q_a, r_a = np.linalg.qr(a)
    q_b, r_b = np.linalg.qr(np.swapaxes(b, -1, -2))
    u, s, v = np.linalg.svd(r_a @ np.swapaxes(r_b, -1, -2))
    root = np.sqrt(s[..., :rank])
    k = root.shape[-1]
    left = (q_a @ u[..., :k]) * root[..., None, :]
    right = root[..., :, None] * (v[..., :k, :] @ np.swapaxes(q_b, -1, -2))
    return Factors(left, right)


def _copies(
    spec: LoRA,
    base: Base,
    pairs: Sequence[Pair],
    weights: Sequence[float],
    params: tree.Tree | None,
) -> dict[str, jax.Array]:
    """{path: mixture} of the copies that `spec` asks for."""
    expected = tree.flatten(abstract_on(spec, base))
    flats = [tree.flatten(adapter) for _, adapter in pairs]
    own = tree.flatten(params or {})
    mixed: dict[str, jax.Array] = {}
    for path in expected:
        if path.rpartition("/")[2] in _LOW_RANK:
            continue
        terms = [(w, flat[path]) for w, flat in zip(weights, flats, strict=True) if path in flat]
        rest = 1.0 - sum(w for w, _ in terms)
        total = sum(w * jnp.asarray(copy, jnp.float32) for w, copy in terms)
        if abs(rest) > 1e-12:
            if path not in own:
                raise ConfigError(
                    f"copies of {path!r} are mixed as differences from the base's; pass params="
                )
            total = total + rest * jnp.asarray(own[path], jnp.float32)
        mixed[path] = total
    return mixed
