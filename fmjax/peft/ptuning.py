"""P-tuning (arXiv:2103.10385): a prompt that a small network computes while it is trained.

The network is PEFT's. What it computes is a plain prompt; only that is filed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.adapter import ENCODER
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.peft import prompt
from fmjax.peft.base import Base
from fmjax.peft.config import saved_by
from fmjax.peft.names import Names, names

DTYPE = np.dtype("float32")
KINDS = ("mlp", "lstm")
# As in PEFT's default, the only depth that its MLP has.
_LSTM_LAYERS = 2


@dataclasses.dataclass(frozen=True)
class PTuning:
    """A prompt of P vectors, computed from P trained vectors by a trained network.

    Train with `peft.applied(spec, model)`; `peft.expand` gives the prompt, and `peft.save` files
    it. `Prompt` says how a prompt is applied.

    Attributes:
      num_virtual_tokens: P.
      hidden_size: H, width of the network; None: that of the model.
      kind: "mlp", three linear layers with ReLUs between them; or "lstm", two bidirectional layers
        over the virtual tokens, and an MLP of two.
      modules_to_save: modules that are trained whole, as of `LoRA`.

    Raises:
      ConfigError: a number that is not positive, or an unknown kind.
    """

    num_virtual_tokens: int = 20
    hidden_size: int | None = None
    kind: str = "mlp"
    modules_to_save: Names = ()

    def __post_init__(self) -> None:
        prompt.check_length("PTuning", self.num_virtual_tokens)
        saved = names("PTuning", "modules_to_save", self.modules_to_save, listed=True)
        object.__setattr__(self, "modules_to_save", saved)
        if self.kind not in KINDS:
            raise ConfigError(
                f"PTuning: kind={self.kind!r} is unknown; choose {' or '.join(KINDS)}"
            )
        H = self.hidden_size
        if H is not None and (type(H) is not int or H < 1):
            raise ConfigError(f"PTuning: hidden_size={H!r} must be a positive integer or None")

    def saves(self, name: str) -> bool:
        """Whether `modules_to_save` cover this module or one that holds it."""
        return bool(saved_by(self.modules_to_save, name))

    def width(self, base: Base) -> int:
        """H."""
        return self.hidden_size or prompt.table(base).shape[1]


def abstract(spec: PTuning, base: Base) -> dict[str, Any]:
    """The network as nested dicts of `ParamSpec` f32 under "encoder".

    embedding [P, D]; linear layers {kernel [in, out], bias [out]}, in order input, hidden and
    output, without input for an LSTM, which has for each layer and direction input {kernel
    [in, 4H], bias [4H]} and recurrent {kernel [H, 4H], bias [4H]}, gates in order i, f, g, o.
    """
    P, D, H = spec.num_virtual_tokens, prompt.table(base).shape[1], spec.width(base)

    def linear(inputs: int, outputs: int) -> dict[str, ParamSpec]:
        # Whole on every device: split, an LSTM would wait for the others at each virtual token.
        kernel = ParamSpec((inputs, outputs), DTYPE, (None, None))
        return {"kernel": kernel, "bias": ParamSpec((outputs,), DTYPE, (None,))}

    found: dict[str, Any] = {"embedding": ParamSpec((P, D), DTYPE, (None, None))}
    if spec.kind == "mlp":
        found |= {"input": linear(D, H), "hidden": linear(H, H), "output": linear(H, D)}
        return {ENCODER: found}
    for layer in range(_LSTM_LAYERS):
        found[f"lstm_{layer}"] = {
            direction: {
                "input": linear(2 * H if layer else D, 4 * H),
                "recurrent": linear(H, 4 * H),
            }
            for direction in ("forward", "backward")
        }
    return {ENCODER: found | {"hidden": linear(2 * H, 2 * H), "output": linear(2 * H, D)}}


def init(rng: jax.Array, spec: PTuning, base: Base, params: Any = None) -> dict[str, Any]:
    """A random network, as PyTorch's: vectors N(0, 1), and U(±1/√in) or, in an LSTM, U(±1/√H).

    A new prompt changes what the model computes. Traceable.
    """
    del params  # P-tuning starts without looking at the base.
    flat = tree.flatten(abstract(spec, base))
    keys = dict(zip(flat, jax.random.split(rng, len(flat)), strict=True))

    def draw(path: str, leaf: ParamSpec) -> jax.Array:
        if path.endswith("embedding"):
            return jax.random.normal(keys[path], leaf.shape, leaf.dtype)
        inputs = flat[f"{path.rpartition('/')[0]}/kernel"].shape[0]
        bound = (spec.width(base) if "/lstm_" in path else inputs) ** -0.5
        return jax.random.uniform(keys[path], leaf.shape, leaf.dtype, -bound, bound)

    return tree.map_with_path(draw, tree.unflatten(flat))


def count(spec: PTuning, base: Base) -> int:
    """Number of trained parameters: the network's."""
    return tree.count(abstract(spec, base))


def expand(spec: PTuning, base: Base, encoder: tree.Tree) -> dict[str, Any]:
    """The prompt that the network computes, in float32 at full precision.

    Args:
      spec: says which network.
      base: the model.
      encoder: as in `abstract`.
    """
    x_PD = encoder["embedding"]
    layers = ("input", "hidden", "output") if spec.kind == "mlp" else ("hidden", "output")
    if spec.kind == "lstm":
        for i in range(_LSTM_LAYERS):
            x_PD = _bidirectional(encoder[f"lstm_{i}"], x_PD)
    for name in layers:
        x_PD = _linear(encoder[name], x_PD)
        x_PD = x_PD if name == "output" else jax.nn.relu(x_PD)
    return prompt.place(base, x_PD)


def _linear(layer: tree.Tree, x: jax.Array) -> jax.Array:
    return jnp.dot(x, layer["kernel"], precision=jax.lax.Precision.HIGHEST) + layer["bias"]


def _bidirectional(layer: tree.Tree, x_PD: jax.Array) -> jax.Array:
    """An LSTM (doi:10.1162/neco.1997.9.8.1735) in both directions: [P, D] → [P, 2H]."""

    def run(weights: tree.Tree, reverse: bool) -> jax.Array:
        zero = jnp.zeros(weights["recurrent"]["kernel"].shape[:1], x_PD.dtype)
        step = functools.partial(_step, weights["recurrent"])
        inputs = _linear(weights["input"], x_PD)
        return jax.lax.scan(step, (zero, zero), inputs, reverse=reverse)[1]

    return jnp.concatenate([run(layer["forward"], False), run(layer["backward"], True)], -1)


def _step(
    recurrent: tree.Tree, carry: tuple[jax.Array, jax.Array], x: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    hidden, cell = carry
    i, f, g, o = jnp.split(x + _linear(recurrent, hidden), 4)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (hidden, cell), hidden
