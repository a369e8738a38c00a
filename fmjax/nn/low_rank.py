"""The maths of low-rank adapters, free of modules: shared by what applies them and what merges.

Shapes: kernel W [in, *out] (or table [V, D]), A [in, r], B [r, *out].
"""

from typing import Any

import jax
import jax.numpy as jnp

from fmjax.quant import Packed

# TPUs would multiply float32 in bfloat16 by default.
EXACT = jax.lax.Precision.HIGHEST


def as_array(kernel: Any) -> jax.Array:
    """A kernel as an array of numbers; a packed one is unpacked."""
    return kernel.dequantize(jnp.float32) if isinstance(kernel, Packed) else kernel


def delta(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """s · A B in float32, [in, *out]."""
    return scale * jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), 1, precision=EXACT)


def column_norm(kernel: Any, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """‖W + s A B‖ over the inputs, f32 [*out], without a gradient: the norm of DoRA.

    Expands the square, so that beside W (unpacked, if it was packed) nothing of its size exists:
    ‖W‖² + 2 ⟨W, s A B⟩ + ‖s A B‖², where ⟨W, A B⟩ = Σ_r (Aᵀ W) ∘ B and ‖A B‖² = Σ_r (Aᵀ A B) ∘ B.
    """
    kernel, a, b, scale = jax.lax.stop_gradient((kernel, a, b, scale))
    w = as_array(kernel).astype(jnp.float32)
    a, b = a.astype(jnp.float32), scale * b.astype(jnp.float32)

    def on_a(x: jax.Array) -> jax.Array:  # [in, …] → Aᵀ x [r, …]
        return jnp.tensordot(a, x, ((0,), (0,)), precision=EXACT)

    gram_b = jnp.tensordot(on_a(a), b, 1, precision=EXACT)
    square = jnp.sum(w * w, 0) + jnp.sum((2 * on_a(w) + gram_b) * b, 0)
    return jnp.sqrt(jnp.maximum(square, 0))


def dora_factor(
    kernel: Any, a: jax.Array, b: jax.Array, scale: jax.Array, magnitude: jax.Array
) -> jax.Array:
    """m / ‖W + s A B‖, f32 [*out], by which DoRA multiplies what W + s A B gives.

    Exactly 1 where the scale is 0: a layer of a stack that has no adapter, or no adapter's row.
    """
    adapted = scale != 0
    norm = jnp.where(adapted, column_norm(kernel, a, b, scale), 1)
    return jnp.where(adapted, magnitude.astype(jnp.float32) / norm, 1)
