"""Prefix tuning (arXiv:2101.00190): learned keys and values before the first token of every layer.

Shapes: P virtual tokens, L layers, G key–value heads, K head size. The table of all prefixes is
[P, 2L, G, K], the key of layer l at 2l and its value at 2l + 1, as in the PEFT library.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.adapter import ENCODER
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.nn import prefix_port
from fmjax.nn.prefix_port import KEY, VALUE
from fmjax.peft.base import Base
from fmjax.peft.config import saved_by
from fmjax.peft.names import Names, names

DTYPE = np.dtype("float32")


@dataclasses.dataclass(frozen=True)
class Prefix:
    """P keys and values a layer, which all tokens attend to; the model's own weights stay.

    Tokens keep to the positions after the prefix, so that it takes P of the model's positions.
    A prefix cannot be merged into the weights. PEFT applies one only to language models and, with
    copies of the head (`fmjax.peft.head_modules`), to classifiers and answerers of questions.

    Attributes:
      num_virtual_tokens: P.
      projection: train a two-layer network and P inputs of it, which compute the prefix, in place
        of the prefix itself (train with `fmjax.peft.applied`). Files hold what it computes: what
        is loaded from them is a plain prefix.
      hidden_size: of that network; default G · K.
      modules_to_save: modules that are trained whole, as of `LoRA`.

    Raises:
      ConfigError: a value out of range.
    """

    num_virtual_tokens: int = 20
    projection: bool = False
    hidden_size: int | None = None
    modules_to_save: Names = ()

    def __post_init__(self) -> None:
        for field in ("num_virtual_tokens", "hidden_size"):
            value = getattr(self, field)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"Prefix: {field}={value!r} must be a positive integer")
        if self.num_virtual_tokens is None:
            raise ConfigError("Prefix: num_virtual_tokens is missing; say how many")
        if type(self.projection) is not bool:
            raise ConfigError(f"Prefix: projection={self.projection!r} must be True or False")
        if self.hidden_size is not None and not self.projection:
            raise ConfigError(
                f"Prefix: hidden_size={self.hidden_size} is the projection's; add projection=True"
            )
        saved = names("Prefix", "modules_to_save", self.modules_to_save, listed=True)
        object.__setattr__(self, "modules_to_save", saved)

    def saves(self, name: str) -> bool:
        """Whether `modules_to_save` cover this module or one that holds it."""
        return bool(saved_by(self.modules_to_save, name))


class Stack(NamedTuple):
    """An attention module at `path`, of one layer, or of `layers` on a leading axis if stacked."""

    path: str
    layers: int
    stacked: bool


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the prefixes of a model go.

    Attributes:
      stacks: the attention modules, first layer first.
      heads: G.
      head_dim: K.
    """

    stacks: tuple[Stack, ...]
    heads: int
    head_dim: int

    @property
    def layers(self) -> int:
        """L."""
        return sum(stack.layers for stack in self.stacks)

    @property
    def token_dim(self) -> int:
        """G · K."""
        return self.heads * self.head_dim

    def table_shape(self, spec: Prefix) -> tuple[int, int, int, int]:
        """[P, 2L, G, K]."""
        return spec.num_virtual_tokens, 2 * self.layers, self.heads, self.head_dim


def layout(base: Base) -> Layout:
    """Asks the model for its attention modules.

    Raises:
      ConfigError: none, or heads that differ between layers.
    """
    sites = prefix_port.sites(base.model)
    if len(set(sites.values())) != 1:
        raise ConfigError(
            f"Prefix: the layers of this {base.architecture} have "
            f"{'different heads' if sites else 'no attention'}; use another method"
        )
    stacks = []
    for path in sites:
        own = next(w for w in base.params if w.path.startswith(f"{path}/"))
        stacks.append(Stack(path, len(own.names) if own.stacked else 1, own.stacked))
    heads, kv_heads, head_dim = next(iter(sites.values()))
    # transformers' newer Falcons repeat each group's key for its query heads and cache that, so
    # there is a prefix for every query head.
    repeats = getattr(base.model.config, "new_decoder_architecture", False)
    return Layout(tuple(stacks), heads if repeats else kv_heads, head_dim)


def check(spec: Prefix, base: Base) -> None:
    """Refuses a model that cannot have a prefix of this length.

    Raises:
      ConfigError: as `layout`; or a prefix that leaves no position to a token.
    """
    layout(base)
    limit = base.model.config.position_limit
    if limit is not None and spec.num_virtual_tokens >= limit:
        raise ConfigError(
            f"Prefix: num_virtual_tokens={spec.num_virtual_tokens} leave no room among the "
            f"{limit} positions of this {base.architecture}; use fewer"
        )


def abstract(spec: Prefix, base: Base) -> dict[str, Any]:
    """The adapter as nested dicts of `ParamSpec`.

    Leaves: `prefix_key` and `prefix_value` f32 [P, G, K] at each attention module, with a leading
    layers axis where it is stacked; with a projection instead "encoder" (see `expand`).
    """
    where = layout(base)
    if spec.projection:
        return {ENCODER: _encoder(spec, where)}
    shape = (spec.num_virtual_tokens, where.heads, where.head_dim)
    flat: dict[str, ParamSpec] = {}
    for stack in where.stacks:
        lead, axes = ((stack.layers,), ("layers",)) if stack.stacked else ((), ())
        leaf = ParamSpec((*lead, *shape), DTYPE, (*axes, None, None, None))
        flat |= {f"{stack.path}/{name}": leaf for name in (KEY, VALUE)}
    return tree.unflatten(flat)


def _encoder(spec: Prefix, where: Layout) -> dict[str, Any]:
    P, D = spec.num_virtual_tokens, where.token_dim
    hidden, out = spec.hidden_size or D, 2 * where.layers * D
    return {
        "embedding": ParamSpec((P, D), DTYPE, (None, None)),
        "hidden": {
            "kernel": ParamSpec((D, hidden), DTYPE, (None, "embed")),
            "bias": ParamSpec((hidden,), DTYPE, ("embed",)),
        },
        "output": {
            "kernel": ParamSpec((hidden, out), DTYPE, ("embed", "mlp")),
            "bias": ParamSpec((out,), DTYPE, ("mlp",)),
        },
    }


def init(rng: jax.Array, spec: Prefix, base: Base, params: Any = None) -> dict[str, Any]:
    """A random prefix, as in PEFT: N(0, 1), or with a projection the start of its network.

    Unlike other adapters a new prefix changes what the model computes. Traceable; the values do
    not depend on `scan_layers`.
    """
    del params  # A prefix starts without looking at the base.
    where = layout(base)
    if not spec.projection:
        return spread(where, jax.random.normal(rng, where.table_shape(spec), DTYPE))
    key, *keys = jax.random.split(rng, 5)
    shapes = _encoder(spec, where)
    found = {"embedding": jax.random.normal(key, shapes["embedding"].shape, DTYPE)}
    for i, name in enumerate(("hidden", "output")):
        bound = shapes[name]["kernel"].shape[0] ** -0.5
        found[name] = {
            leaf: jax.random.uniform(keys[2 * i + j], own.shape, DTYPE, -bound, bound)
            for j, (leaf, own) in enumerate(shapes[name].items())
        }
    return {ENCODER: found}


def count(spec: Prefix, base: Base) -> int:
    """Number of trained parameters, the projection's included."""
    return sum(math.prod(leaf.shape) for leaf in tree.flatten(abstract(spec, base)).values())


def expand(spec: Prefix, base: Base, encoder: tree.Tree) -> dict[str, Any]:
    """The prefix that the network computes: embedding → linear → tanh → linear.

    Args:
      spec: with a projection.
      base: the model.
      encoder: embedding [P, G·K], hidden and output {kernel [in, out], bias [out]}.
    """
    where = layout(base)

    def linear(x: jax.Array, layer: tree.Tree) -> jax.Array:
        return jnp.dot(x, layer["kernel"], precision=jax.lax.Precision.HIGHEST) + layer["bias"]

    x = jnp.tanh(linear(encoder["embedding"], encoder["hidden"]))
    return spread(where, linear(x, encoder["output"]).reshape(where.table_shape(spec)))


def spread(where: Layout, table: Any) -> dict[str, Any]:
    """Table [P, 2L, G, K] → adapter; of NumPy or JAX, as the table is."""
    flat: dict[str, Any] = {}
    first = 0
    for path, layers, stacked in where.stacks:
        own = table[:, 2 * first : 2 * (first + layers)].swapaxes(0, 1)
        first += layers
        for i, name in enumerate((KEY, VALUE)):
            flat[f"{path}/{name}"] = own[i::2] if stacked else own[i]
    return tree.unflatten(flat)


def gather(where: Layout, flat: dict[str, np.ndarray]) -> np.ndarray:
    """Adapter {path: array} → table [P, 2L, G, K]; the inverse of `spread`."""
    rows: list[np.ndarray] = []
    for path, layers, stacked in where.stacks:
        pair = [flat[f"{path}/{name}"] for name in (KEY, VALUE)]
        rows += [x[i] if stacked else x for i in range(layers) for x in pair]
    return np.stack(rows, 1)
