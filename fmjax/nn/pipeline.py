"""Pipeline parallelism: the layers are cut into stages, and the batch passes through in parts.

The schedule is GPipe's (arXiv:1811.06965), written as GSPMD writes it (arXiv:2105.04663, section
3.3): all stages are one `vmap` over an axis that is laid out on the mesh axis `stage`, and what
they hand on is a roll along it, which the partitioner makes a collective permute. So the other mesh
axes split each layer as they do without stages, and JAX differentiates the loop as any other.

Shapes: L layers, S stages, B rows, M microbatches of R = B / M rows, K = M / S microbatches a
stage. Tick t of M + S − 1 takes microbatch t − s through the L / S layers of stage s, where there
is one; the other S (S − 1) of S (M + S − 1) turns are the bubble.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core import logical
from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError, ShardingError

AXIS = "stage"

Body = Callable[[nn.Module, Any, Any, Any], tuple[Any, Any]]


def stages() -> int:
    """S, into how many stages the rules of the enclosing `logical.use` cut the layers; else 1.

    Raises:
      ShardingError: the layers are split over `stage` and another axis.
    """
    current = logical.current()
    if current is None or current[0].shape.get(AXIS, 1) == 1:
        return 1
    mesh, rules = current
    (axes,) = logical.spec(("layers",), rules, mesh)
    if axes == AXIS:
        return mesh.shape[AXIS]
    if AXIS in (axes or ()):
        raise ShardingError(
            f"the layers are split over {' and '.join(axes)}, of which {AXIS!r} cuts them into "
            f"stages; use the rule ('layers', {AXIS!r})"
        )
    return 1


def apply_stages(
    body: Body,
    layer: nn.Module,
    num_layers: int,
    x: Any,
    context: Any,
    per_layer: Any,
    microbatches: int | None = None,
) -> tuple[Any, Any]:
    """Applies a stack of layers stage by stage; the arguments are those of `apply_layers`.

    Dropout draws other numbers than without stages: a key for each layer and microbatch.

    Args:
      body: (layer, x, own, context) → (x, what is kept of each layer), rematerialised or not.
      layer: bound, with variables that are stacked on a leading axis of L.
      num_layers: L.
      x: pytree of arrays [B, …].
      context: pytree. Arrays [B, …] are cut like the batch; scalars and arrays [1, …] are shared.
      per_layer: pytree of arrays [L, …].
      microbatches: M, a multiple of S; None means S.

    Returns:
      (x of the last layer, what is kept, arrays [L, B, …]).

    Raises:
      ShardingError: layers, microbatches or rows that do not divide.
      ConfigError: a cache, a bank of adapters, or a context that is not of one row or all.
    """
    mesh, rules = logical.current()
    S = mesh.shape[AXIS]
    M = microbatches or S
    B = jax.tree.leaves(x)[0].shape[0]
    inner = _without_stage(rules)
    batch = _check_sizes(num_layers, S, M, B, mesh, inner)
    split, join = _by_row(context, B)
    layers = (_variables(layer), per_layer, np.arange(num_layers))
    one = _one_layer(body, layer)

    def run(layers: Any, x: Any, rows: Any, microbatch: jax.Array) -> tuple[Any, Any]:
        """One stage's turn: its layers, and one microbatch of x and of the context's rows."""
        context = join(rows)
        return jax.lax.scan(lambda x, of_layer: one(x, of_layer, context, microbatch), x, layers)

    def lay_out(arrays: Any, *between: None) -> Any:
        """[S, *between, R, …], the rows as the batch is inside a stage."""

        def fix(a: jax.Array) -> jax.Array:
            free = [PartitionSpec.UNCONSTRAINED] * (a.ndim - 2 - len(between))
            spec = PartitionSpec(AXIS, *between, batch, *free)
            return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, spec))

        return jax.tree.map(fix, arrays)

    layers = jax.tree.map(lambda a: a.reshape(S, num_layers // S, *a.shape[1:]), layers)
    waiting = lay_out(jax.tree.map(lambda a: _cut(a, S, M), (x, split)), None)
    numbers = jnp.arange(S)
    schedule = _Schedule(jax.vmap(run, spmd_axis_name=AXIS), layers, numbers, M // S, lay_out)
    # A bubble works on real rows, not on zeros: nothing that is not finite can arise there, which
    # a gradient of zero would turn into NaN.
    passing = jax.tree.map(lambda a: a[:, 0], waiting)
    with logical.use(mesh, inner):
        (_, done), kept = jax.lax.scan(schedule, (passing, waiting), jnp.arange(M + S - 1))
    # Microbatch m comes out into slot (m + S − 1) mod K of the stage that it began at.
    out = jax.tree.map(lambda a: _merge(jnp.roll(a, 1 - S, 1)), done[0])

    def sort(a: jax.Array) -> jax.Array:
        """[ticks, S, L / S, R, …] → [L, B, …]: of stage s the ticks from s on."""
        valid = jax.vmap(lambda a, s: jax.lax.dynamic_slice_in_dim(a, s, M), (1, 0))(a, numbers)
        a = jnp.swapaxes(valid, 1, 2)  # [S, L / S, M, R, …]
        a = a.reshape(num_layers, S, M // S, *a.shape[3:])
        return jax.vmap(_merge)(a)

    return out, jax.tree.map(sort, kept)


class _Schedule:
    """One tick: every stage takes its turn, and what passes through moves on by one stage.

    Inputs and outputs share one buffer [S, K, R, …], so that no stage holds more of the batch than
    its own share. Slot t mod K of stage 0 holds the microbatch that begins at tick t. Then that
    slot moves down by one stage, and the output of the last stage enters at its upper end: after
    the last tick the outputs lie at the stages where the inputs were.
    """

    def __init__(
        self, run: Any, layers: Any, numbers: jax.Array, slots: int, lay_out: Callable[..., Any]
    ):
        self.run, self.layers, self.numbers = run, layers, numbers
        self.slots, self.lay_out = slots, lay_out

    def __call__(self, carry: tuple[Any, Any], tick: jax.Array) -> tuple[tuple[Any, Any], Any]:
        passing, waiting = carry
        slot = tick % self.slots
        at = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, slot, 1, keepdims=False), waiting
        )
        x, rows = self._at(0, at, passing)
        y, kept = self.run(self.layers, x, rows, tick - self.numbers)
        y = self.lay_out(y)
        down = jax.tree.map(lambda a: jnp.roll(a, -1, 0), at)
        down = (self._at(len(self.numbers) - 1, y, down[0]), down[1])
        waiting = jax.tree.map(
            lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, slot, 1), waiting, down
        )
        passing = jax.tree.map(lambda a: jnp.roll(a, 1, 0), (y, rows))
        return (self.lay_out(passing), self.lay_out(waiting, None)), kept

    def _at(self, stage: int, new: Any, old: Any) -> Any:
        """`new` at one stage, `old` at the others."""

        def choose(a: jax.Array, b: jax.Array) -> jax.Array:
            here = (self.numbers == stage).reshape(-1, *(1,) * (a.ndim - 1))
            return jnp.where(here, a, b)

        return jax.tree.map(choose, new, old)


def _one_layer(body: Body, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
    """(x, (variables, own input, number) of a layer, context, microbatch) → (x, what is kept)."""
    free = layer.clone(parent=None)
    key = layer.make_rng("dropout") if layer.has_rng("dropout") else None

    def one(x: Any, of_layer: Any, context: Any, microbatch: jax.Array) -> tuple[Any, Any]:
        variables, own, number = of_layer
        rngs = None
        if key is not None:
            rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, number), microbatch)}
        return free.apply(variables, x, own, context, rngs=rngs, method=body)

    return one


def _variables(layer: nn.Module) -> dict[str, Any]:
    """The stacked parameters, and adapters if there are any."""
    found = dict(layer.variables)
    where = f"{'/'.join(layer.path)!r} is cut into stages"
    if "cache" in found or layer.is_mutable_collection("cache"):
        raise ConfigError(
            f"{where}, through which one token at a time cannot pass; decode on a mesh with "
            f"{AXIS}=1, or with the rule ('layers', None)"
        )
    paths = jax.tree_util.tree_leaves_with_path(found.get(COLLECTION, {}))
    if any(getattr(path[-1], "key", None) == "rows" for path, _ in paths):
        raise ConfigError(
            f"{where}, which do not take a bank of adapters; use a mesh with {AXIS}=1, or the "
            "rule ('layers', None)"
        )
    return {name: found[name] for name in ("params", COLLECTION) if name in found}


def _check_sizes(
    L: int, S: int, M: int, B: int, mesh: Any, rules: logical.Rules
) -> str | tuple[str, ...] | None:
    """The mesh axes that split the rows of a microbatch."""
    if L % S:
        raise ShardingError(
            f"{L} layers do not divide over {AXIS}={S}; change the mesh, or keep them together "
            "with the rule ('layers', None)"
        )
    if M % S:
        raise ShardingError(f"microbatches={M} is not a multiple of {AXIS}={S}; use {S} or {2 * S}")
    (batch,) = logical.spec(("batch",), rules, mesh)
    axes = logical.mesh_axes(batch)
    parts = M * int(np.prod([mesh.shape[a] for a in axes]))
    if B % parts:
        over = " × ".join([f"microbatches={M}", *(f"{a}={mesh.shape[a]}" for a in axes)])
        raise ShardingError(
            f"a batch of {B} rows does not divide over {over} (on {AXIS}={S}); "
            f"use a multiple of {parts}"
        )
    return batch


def _without_stage(rules: logical.Rules) -> logical.Rules:
    """The rules inside a stage, where `vmap` lays out the axis of the stages."""

    return tuple(
        (name, tuple(a for a in logical.mesh_axes(axes) if a != AXIS)) for name, axes in rules
    )


def _by_row(context: Any, B: int) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a context that have a row for each of the batch, and how to put them back."""
    leaves, structure = jax.tree.flatten(context)
    rows = [np.ndim(a) > 0 and np.shape(a)[0] == B for a in leaves]
    for a, by_row in zip(leaves, rows, strict=True):
        if not by_row and np.ndim(a) > 0 and np.shape(a)[0] != 1:
            raise ConfigError(
                f"the layers share an array {np.shape(a)} of which it is unclear whose rows a part "
                f"of the batch needs; on a mesh with stages its first axis must be {B} or 1"
            )

    def join(parts: list[Any]) -> Any:
        moved = iter(parts)
        return structure.unflatten(
            [next(moved) if by_row else a for a, by_row in zip(leaves, rows, strict=True)]
        )

    return [a for a, by_row in zip(leaves, rows, strict=True) if by_row], join


def _cut(a: jax.Array, S: int, M: int) -> jax.Array:
    """[B, …] → [S, K, R, …]: where the batch is split over the stages first, no row moves."""
    K = M // S
    return jnp.swapaxes(jnp.reshape(a, (S, a.shape[0] // M, K, *a.shape[1:])), 1, 2)


def _merge(a: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    S, K, R, *rest = a.shape
    return jnp.swapaxes(a, 1, 2).reshape(S * R * K, *rest)
