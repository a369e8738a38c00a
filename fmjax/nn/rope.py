"""Rotary position embeddings with every published scaling of their frequencies.

The formulas follow `transformers` (`modeling_rope_utils`), whose names and defaults they bear, so
that a checkpoint's config means here what it means there.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import ConfigError

_COMMON = {"rope_type", "rope_theta", "partial_rotary_factor"}
_ATTENTION = {"attention_factor", "original_max_position_embeddings"}
# What each type reads besides the common fields: (required, optional).
ROPE_TYPES: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    # The "dynamic" base grows with max_position_embeddings; older files carry the original too.
    "dynamic": ({"factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "longrope": (
        {"short_factor", "long_factor", "original_max_position_embeddings"},
        {"factor", "attention_factor"},
    ),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        set(),
    ),
    "proportional": (set(), {"factor"}),
}


def _positive(x: Any) -> bool:
    number = isinstance(x, int | float) and not isinstance(x, bool)
    return number and 0 < x < math.inf


@dataclasses.dataclass(frozen=True)
class Rope:
    """The `rope_parameters` of a Hugging Face config (older: `rope_theta` and `rope_scaling`).

    Attributes:
      rope_type: a key of `ROPE_TYPES`.
      rope_theta: the base of the frequencies.
      partial_rotary_factor: the fraction of the head that is rotated.
      others: as in `transformers`; None means not given.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    partial_rotary_factor: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            known = ", ".join(ROPE_TYPES)
            raise ConfigError(f"rope_type {self.rope_type!r} is unknown; fmjax knows {known}")
        required, _ = ROPE_TYPES[self.rope_type]
        missing = sorted(f for f in required if getattr(self, f) is None)
        if missing:
            raise ConfigError(f"rope_type {self.rope_type!r} needs {', '.join(missing)}")
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, list | tuple) or not all(map(_positive, value)):
                    raise ConfigError(f"rope {name} must be a list of positive numbers")
                object.__setattr__(self, name, tuple(float(x) for x in value))
        for name in ("rope_theta", "factor", "original_max_position_embeddings"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise ConfigError(f"rope {name}={value!r} must be a positive number")

    @classmethod
    def from_hf(cls, parameters: Mapping[str, Any]) -> "Rope":
        """From a `rope_parameters` or `rope_scaling` dict.

        Raises:
          ConfigError: an unknown type, or a field that the type does not read.
        """
        fields = {k: v for k, v in parameters.items() if k != "type" and v is not None}
        fields["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
        if not isinstance(fields["rope_type"], str):
            raise ConfigError(f"rope_type {fields['rope_type']!r} must be a name")
        required, optional = ROPE_TYPES.get(fields["rope_type"], (set(), set()))
        known = _COMMON | required | optional
        unknown = sorted(set(fields) - known)
        if unknown and fields["rope_type"] in ROPE_TYPES:
            raise ConfigError(
                f"rope_type {fields['rope_type']!r} does not read {', '.join(unknown)}; "
                "remove it from rope_parameters"
            )
        return cls(**fields)

    def to_hf(self) -> dict[str, Any]:
        """The `rope_parameters` dict; the inverse of `from_hf`."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def _base_frequencies(theta: float | jax.Array, rotated: int, size: int) -> jax.Array:
    return 1.0 / (theta ** (jnp.arange(0, rotated, 2, dtype=jnp.float32) / size))


def frequencies(
    rope: Rope, head_dim: int, max_position_embeddings: int, length: jax.Array
) -> tuple[jax.Array, float]:
    """Angular frequencies and the factor on cos and sin.

    Args:
      rope: the parameters.
      head_dim: K.
      max_position_embeddings: of the config; some scalings refer to it.
      length: i32 scalar, the length of the longest sequence at hand ("dynamic" and "longrope"
        depend on it).

    Returns:
      (f32 [rotated dimensions / 2] in radians a position, attention factor).
    """
    r, kind = rope, rope.rope_type
    partial = 1.0 if r.partial_rotary_factor is None else r.partial_rotary_factor
    dim = int(head_dim * partial)
    if kind == "default":
        return _base_frequencies(r.rope_theta, dim, dim), 1.0
    if kind == "linear":
        return _base_frequencies(r.rope_theta, dim, dim) / r.factor, 1.0
    if kind == "proportional":
        angles = int(partial * head_dim // 2)
        freqs = _base_frequencies(r.rope_theta, 2 * angles, head_dim)
        return jnp.pad(freqs, (0, head_dim // 2 - angles)) / (r.factor or 1.0), 1.0
    if kind == "dynamic":
        # NTK-aware scaling whose base grows once the sequence outgrows the training length.
        grown = jnp.maximum(length, max_position_embeddings).astype(jnp.float32)
        ratio = r.factor * grown / max_position_embeddings - (r.factor - 1)
        return _base_frequencies(r.rope_theta * ratio ** (dim / (dim - 2)), dim, dim), 1.0
    if kind == "llama3":
        return _llama3(r, _base_frequencies(r.rope_theta, dim, dim)), 1.0
    if kind == "yarn":
        return _yarn(r, dim)
    return _longrope(r, dim, max_position_embeddings, length)


def _llama3(r: Rope, freqs: jax.Array) -> jax.Array:
    """Long wavelengths are slowed by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / freqs
    long = r.original_max_position_embeddings / r.low_freq_factor
    short = r.original_max_position_embeddings / r.high_freq_factor
    smooth = (r.original_max_position_embeddings / wavelength - r.low_freq_factor) / (
        r.high_freq_factor - r.low_freq_factor
    )
    between = (1 - smooth) * freqs / r.factor + smooth * freqs
    return jnp.where(
        wavelength > long, freqs / r.factor, jnp.where(wavelength < short, freqs, between)
    )


def _yarn(r: Rope, dim: int) -> tuple[jax.Array, float]:
    """YaRN (arXiv:2309.00071): interpolate slow dimensions, keep fast ones, sharpen attention."""
    original = r.original_max_position_embeddings

    def sharpen(factor: float, mscale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(r.rope_theta))

    attention = r.attention_factor
    if attention is None and r.mscale and r.mscale_all_dim:
        attention = sharpen(r.factor, r.mscale) / sharpen(r.factor, r.mscale_all_dim)
    elif attention is None:
        attention = sharpen(r.factor)
    low, high = dimension(r.beta_fast or 32), dimension(r.beta_slow or 1)
    if r.truncate is None or r.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = jnp.clip((jnp.arange(dim // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)
    freqs = _base_frequencies(r.rope_theta, dim, dim)
    return freqs / r.factor * ramp + freqs * (1 - ramp), attention


def _longrope(r: Rope, dim: int, max_positions: int, length: jax.Array) -> tuple[jax.Array, float]:
    """LongRoPE (arXiv:2402.13753): one learned factor a dimension, two sets by length."""
    original = r.original_max_position_embeddings
    factor = max_positions / original if r.factor is None else r.factor
    attention = r.attention_factor
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    for name, factors in (("short_factor", r.short_factor), ("long_factor", r.long_factor)):
        if len(factors) != dim // 2:
            raise ConfigError(f"rope {name} has {len(factors)} entries; head_dim needs {dim // 2}")
    long, short = np.asarray(r.long_factor, "f4"), np.asarray(r.short_factor, "f4")
    return _base_frequencies(r.rope_theta, dim, dim) / jnp.where(
        length > original, long, short
    ), attention


def cos_sin(
    rope: Rope, head_dim: int, max_position_embeddings: int, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tables for `rotate`: two f32 [B, T, 1, rotated dimensions / 2]; positions i32 [B, T]."""
    length = jnp.max(positions_BT) + 1  # the longest row's, as in transformers
    freqs, factor = frequencies(rope, head_dim, max_position_embeddings, length)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * freqs
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


@jax.custom_vjp
def rotate(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + rotated / 2), the half-split order of Hugging Face files.

    Dimensions beyond the tables' (partial rotation) pass unchanged. The gradient is rotated back,
    by the same arithmetic; left to itself, XLA would hold it in float32. The tables have none.
    """
    half = cos.shape[-1]
    x1, x2, rest = (
        x_BTHK[..., :half].astype(jnp.float32),
        x_BTHK[..., half : 2 * half].astype(jnp.float32),
        x_BTHK[..., 2 * half :],
    )
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
    return jnp.concatenate([rotated.astype(x_BTHK.dtype), rest], -1)


def _forward(x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, Any]:
    return rotate(x, cos, sin), (cos, sin)


def _backward(tables: Any, dy: jax.Array) -> tuple[jax.Array, None, None]:
    cos, sin = tables
    return rotate(dy, cos, -sin), None, None


rotate.defvjp(_forward, _backward)
