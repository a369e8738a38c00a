"""Sparse mixtures of experts: a router, and gated MLPs of which each token visits a few.

Dispatch is dropless: tokens are sorted by expert and multiplied group by group, so that no expert
has a capacity. Shapes: N tokens, K experts a token, E experts, D hidden size, F width of an
expert's MLP.
"""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn import ports
from fmjax.nn.activations import activation
from fmjax.nn.at_use import at_use
from fmjax.nn.expert_parallel import over_devices
from fmjax.nn.grouped import grouped_matmul
from fmjax.nn.param import param

Initializer = Callable[..., jax.Array]


def route(logits_NE: jax.Array, experts_per_token: int) -> tuple[jax.Array, jax.Array]:
    """Chooses each token's experts: the most probable ones, their probabilities made to sum to 1.

    Args:
      logits_NE: of the router; any leading dimensions.
      experts_per_token: K.

    Returns:
      (weights f32 [N, K], experts i32 [N, K]), in descending order of probability.
    """
    probs = jax.nn.softmax(logits_NE.astype(jnp.float32), -1)
    weights, chosen = jax.lax.top_k(probs, experts_per_token)
    return weights / jnp.sum(weights, -1, keepdims=True), chosen


class Weight(nn.Module):
    """A matrix or a stack of them, as it is; adapters of it plug in where it is multiplied.

    Attributes:
      shape, axes: of the parameter.
      kernel_init: its initialiser.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kernel_init: Initializer
    execution: Execution

    @nn.compact
    def __call__(self) -> jax.Array:
        ex = self.execution
        w = param(self, "weight", self.kernel_init, self.shape, self.axes, ex.param_dtype)
        return at_use(w, ex.dtype)


class Experts(nn.Module):
    """down(act(gate(x)) · up(x)) by the chosen experts, summed with the router's weights.

    Inside `fmjax.core.logical.use`, each device sorts the tokens of its own `expert` group and
    takes them through its own experts.

    A low-rank adapter has factors for each expert: in the module's adapter under "gate_up_proj"
    lora_a [E, D, r], which gate and up share, and lora_b [E, r, 2, F]; under "down_proj"
    lora_a [E, F, r] and lora_b [E, r, D].

    Attributes:
      experts: E.
      features: F.
      act: name of the gate's activation.
      kernel_init: of the matrices, [E, D, F] and [E, F, D].
    """

    experts: int
    features: int
    act: str = "silu"
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        """x [B, T, D], weights f32 and chosen i32 [B, T, K] → [B, T, D]."""
        ex, E, D, F = self.execution, self.experts, x.shape[-1], self.features

        def weight(name: str, shape: tuple[int, int], axes: tuple[str, str]) -> jax.Array:
            init, axes = self.kernel_init, ("expert", *axes)
            return Weight((E, *shape), axes, init, ex, name=name)()

        gate = weight("gate_proj", (D, F), ("embed", "mlp"))
        up = weight("up_proj", (D, F), ("embed", "mlp"))
        down = weight("down_proj", (F, D), ("mlp", "embed"))
        return over_devices(
            functools.partial(_visit, activation(self.act)),
            (x.astype(ex.dtype), weights, chosen),
            (gate, up, down),
            {n: f for n in ("gate_up_proj", "down_proj") if (f := self._factors(n)) is not None},
        )

    def _factors(self, name: str) -> tuple[jax.Array, jax.Array] | None:
        """Low-rank factors (s · A, B) of an adapter."""
        own = ports.leaves(self, name)
        if own is None:
            return None
        if "rows" in own:
            raise ConfigError(
                f"the adapter's {'/'.join((*self.path, name))!r} is on experts, which a bank "
                "cannot hold; use that adapter by itself, or merge it"
            )
        dtype = self.execution.dtype
        return (own["lora_scale"] * own["lora_a"]).astype(dtype), own["lora_b"].astype(dtype)


def _visit(
    act: Callable[[jax.Array], jax.Array],
    tokens: tuple[jax.Array, jax.Array, jax.Array],
    kernels: tuple[jax.Array, jax.Array, jax.Array],
    factors: Mapping[str, tuple[jax.Array, jax.Array]],
    first: int | jax.Array = 0,
) -> jax.Array:
    """Takes tokens through the experts first, first + 1, … whose kernels are given.

    Args:
      act: of the gates.
      tokens: x [N, D], weights [N, K], chosen [N, K].
      kernels: gate and up [E, D, F], down [E, F, D].
      factors: s · A and B on "gate_up_proj", "down_proj" or neither, as `Experts` has them.
      first: number of the first of these E experts.

    Returns:
      [N, D], zero where none of a token's experts is here.
    """
    x_ND, weights_NK, chosen_NK = tokens
    gate, up, down = kernels
    (N, K), E = chosen_NK.shape, len(gate)
    # Visits (token, expert) in the order of the experts; those of experts elsewhere come last.
    expert = chosen_NK.reshape(N * K) - first
    expert = jnp.where((expert >= 0) & (expert < E), expert, E)
    order = jnp.argsort(expert, stable=True)
    sizes_E = jnp.bincount(expert, length=E + 1)[:E].astype(jnp.int32)

    def low_rank(name: str, x: jax.Array) -> jax.Array | int:  # x A B [N·K, …]
        if name not in factors:
            return 0
        a, b = factors[name]
        low = grouped_matmul(x, a, sizes_E)
        return grouped_matmul(low, b.reshape(*b.shape[:2], -1), sizes_E)

    visits = x_ND[order // K]
    gates, ups = (grouped_matmul(visits, w, sizes_E) for w in (gate, up))
    if "gate_up_proj" in factors:
        change = low_rank("gate_up_proj", visits)
        width = gates.shape[-1]
        gates, ups = gates + change[:, :width], ups + change[:, width:]
    hidden = act(gates) * ups
    # Zero for experts elsewhere.
    y = grouped_matmul(hidden, down, sizes_E) + low_rank("down_proj", hidden)
    y_NKD = y[jnp.argsort(order)].reshape(N, K, -1)
    return jnp.sum(y_NKD * weights_NK[:, :, None], 1).astype(x_ND.dtype)


class SparseMoE(nn.Module):
    """A router over gated MLPs: x [B, T, D] → (y [B, T, D], router logits f32 [B, T, E]).

    Attributes:
      experts: E.
      experts_per_token: K.
      features: F.
      act: name of the gates' activation.
      kernel_init: of all matrices.
    """

    experts: int
    experts_per_token: int
    features: int
    act: str = "silu"
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        init, ex = self.kernel_init, self.execution
        D, E = x.shape[-1], self.experts
        # Small, so not split over the experts.
        gate = Weight((D, E), ("embed", None), init, ex, name="gate")()
        logits = ports.low_rank(
            self, x.astype(ex.dtype), gate, lambda x: jnp.dot(x, gate), below="gate"
        ).astype(jnp.float32)
        weights, chosen = route(logits, self.experts_per_token)
        experts = Experts(E, self.features, self.act, init, ex, name="experts")
        return constrain(experts(x, weights, chosen), ("batch", "seq", "act_embed")), logits
