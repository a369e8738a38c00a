"""Feed-forward blocks."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.activations import activation
from fmjax.nn.dense import Dense

Initializer = Callable[..., jax.Array]


class MLP(nn.Module):
    """down(act(up(x))): x [B, T, D] → [B, T, D].

    Attributes:
      features: width of the hidden layer.
      act: name of the activation.
      names: of the two projections, in the family's own words.
      use_bias: on both projections.
      kernel_init, out_init: initialisers of the first and the second projection.
    """

    features: int
    act: str
    names: tuple[str, str] = ("up_proj", "down_proj")
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.normal(0.02)
    out_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = Dense(
            self.features,
            ("embed", "mlp"),
            self.use_bias,
            self.kernel_init,
            self.execution,
            wide=True,
            name=self.names[0],
        )
        down = Dense(
            x.shape[-1],
            ("mlp", "embed"),
            self.use_bias,
            self.out_init,
            self.execution,
            name=self.names[1],
        )
        hidden = constrain(up(x), ("batch", "seq", "act_mlp"))
        return down(activation(self.act)(checkpoint_name(hidden, "mlp_up")))


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)), SwiGLU and its kin (arXiv:2002.05202).

    Attributes:
      features: width of the hidden layer.
      act: name of the gate's activation.
      use_bias: on the three projections.
      kernel_init: initialiser of the three projections.
    """

    features: int
    act: str = "silu"
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
            wide, ex = axes[0] == "embed", self.execution
            return Dense(features, axes, self.use_bias, self.kernel_init, ex, wide=wide, name=name)

        gate = dense(self.features, ("embed", "mlp"), "gate_proj")(x)
        up = dense(self.features, ("embed", "mlp"), "up_proj")(x)
        gate, up = checkpoint_name(gate, "mlp_gate"), checkpoint_name(up, "mlp_up")
        hidden = constrain(activation(self.act)(gate) * up, ("batch", "seq", "act_mlp"))
        return dense(x.shape[-1], ("mlp", "embed"), "down_proj")(hidden)


class FusedGatedMLP(nn.Module):
    """`GatedMLP` whose gate and up projection are one kernel [D, 2, features], gate first.

    Attributes:
      features: width of the hidden layer.
      act: name of the gate's activation.
      names: of the two projections, in the family's own words.
      use_bias: on both projections.
      kernel_init: initialiser of both.
    """

    features: int
    act: str = "silu"
    names: tuple[str, str] = ("gate_up_proj", "down_proj")
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = (self.use_bias, self.kernel_init, self.execution)
        halves, axes = (2, self.features), ("embed", None, "mlp")
        both = Dense(halves, axes, *options, wide=True, name=self.names[0])(x)
        gate = checkpoint_name(both[..., 0, :], "mlp_gate")
        up = checkpoint_name(both[..., 1, :], "mlp_up")
        hidden = constrain(activation(self.act)(gate) * up, ("batch", "seq", "act_mlp"))
        return Dense(x.shape[-1], ("mlp", "embed"), *options, name=self.names[1])(hidden)
