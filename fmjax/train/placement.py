"""Where the parts of a training state lie on a mesh.

Variables keep the sharding that they came with; optimizer moments and gradients take that of the
parameter they belong to; counters and keys are on every device.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.core import logical, tree
from fmjax.core.errors import ShardingError
from fmjax.core.params import ParamSpec
from fmjax.parallel import param_shardings

SMALL = 1 << 20
"""Leaves of at most this many bytes may be replicated without being asked for."""


def variable_shardings(
    variables: Mapping[str, Any],
    mesh: Mesh,
    rules: logical.Rules,
    abstract: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A NamedSharding for every array in `variables`, in the same structure.

    In this order: a `ParamSpec` at the path (in `abstract`, or as the leaf itself), or a packed
    kernel of them, is laid out by the rules; an array that lies on this mesh stays where it is;
    what is small is replicated, and so are adapters, whose factors are thin.

    Raises:
      ShardingError: a large array that is not on the mesh and has no `ParamSpec`, by name.
    """
    specs = tree.flatten(abstract or {})
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path: str, leaf: Any) -> Any:
        spec = leaf if _described(leaf) else specs.get(path)
        # A packed kernel may stand where the abstract tree has a whole one: it lies where it lies.
        if _described(spec) and jax.tree.structure(spec) == jax.tree.structure(leaf):
            return tree.flatten(param_shardings({path: spec}, mesh, rules))[path]
        return jax.tree.map(lambda x: keep(path, x), leaf)

    def keep(path: str, x: Any) -> NamedSharding:
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.devices.tolist() == devices:
            return sharding
        if mesh.size == 1 or path.startswith("adapter/") or tree.nbytes(x) <= SMALL:
            return replicated
        raise ShardingError(
            f"{path} ({tree.nbytes(x):,} bytes) is not on the mesh; create it there with mesh=, "
            "or pass abstract={'params': fmjax.abstract_params(model)} to make_step"
        )

    devices = mesh.devices.tolist()
    return tree.map_with_path(place, variables)


def _described(leaf: Any) -> bool:
    """Whether a leaf is a `ParamSpec`, or a packed kernel of them."""
    parts = jax.tree.leaves(leaf)
    return bool(parts) and all(isinstance(part, ParamSpec) for part in parts)


def split_further(arrays: Any, mesh: Mesh, rules: logical.Rules) -> Any:
    """`ShapeDtypeStruct`s of weights → the same as their optimizer state is to be laid out.

    The rule for "optimizer" names mesh axes that split the state beyond the weights (ZeRO stage 1,
    arXiv:1910.02054). They are put on the largest dimension that divides and is not split yet; an
    array without one is laid out as its weight is.
    """
    over = logical.mesh_axes(next((axes for name, axes in rules if name == "optimizer"), None))

    def split(x: Any) -> Any:
        spec = (*x.sharding.spec, *[None] * (len(x.shape) - len(x.sharding.spec)))
        taken = {a for entry in spec for a in logical.mesh_axes(entry)}
        free = tuple(a for a in over if mesh.shape.get(a, 1) > 1 and a not in taken)
        parts = math.prod(mesh.shape[a] for a in free)
        fitting = [d for d, n in enumerate(x.shape) if spec[d] is None and n % parts == 0]
        if not free or not fitting:
            return x
        dim = max(fitting, key=lambda d: x.shape[d])
        partition = PartitionSpec(*spec[:dim], free, *spec[dim + 1 :])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, partition))

    return jax.tree.map(split, arrays)


def inherited_shardings(state: Any, params: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shardings for a pytree that holds copies of parameters somewhere inside.

    An optimizer's moments or an EMA teacher stand under the path of their parameter (with or
    without the collection), possibly as a node of several arrays. An array there of the parameter's
    shape gets its sharding. One with as many axes but fewer entries, each for a block of the
    parameter (the scales of moments in eight bits), is split like the parameter along the axes
    whose shards are whole blocks. All else is replicated.

    Args:
      state: pytree of arrays or `ShapeDtypeStruct`s.
      params: nested dict of `ShapeDtypeStruct`s with shardings.
      mesh: the devices.
    """
    known = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = _keys(path)
        known[keys] = known[keys[1:]] = leaf

    def place(path: Any, x: Any) -> NamedSharding:
        keys = _keys(path)
        for start in range(len(keys)):
            for end in (len(keys), len(keys) - 1):
                like = known.get(keys[start:end])
                if like is not None and like.shape == x.shape:
                    return like.sharding
                if like is not None and end < len(keys) and len(like.shape) == len(x.shape):
                    return _by_blocks(x.shape, like, mesh)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def _by_blocks(shape: Sequence[int], like: Any, mesh: Mesh) -> NamedSharding:
    """Of an array with an entry for each block of `like`."""
    shards = [
        a // b for a, b in zip(like.shape, like.sharding.shard_shape(like.shape), strict=True)
    ]
    axes = (*like.sharding.spec, *[None] * (len(shape) - len(like.sharding.spec)))
    return NamedSharding(
        mesh,
        PartitionSpec(
            *(
                axis if blocks % n == 0 and size % blocks == 0 else None
                for axis, blocks, size, n in zip(axes, shape, like.shape, shards, strict=True)
            )
        ),
    )


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def put(arrays: Any, shardings: Any) -> Any:
    """Arrays laid out anew, from wherever they are.

    What a process holds alone, but is to lie on devices of all, must be the same in all of them;
    each gives its own devices their parts.

    Args:
      arrays: pytree of arrays, typed keys among them.
      shardings: the same tree of shardings.
    """

    def place(x: Any, sharding: Any) -> jax.Array:
        alone = getattr(x, "is_fully_addressable", True)
        if sharding is None or sharding.is_fully_addressable or not alone:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = place(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, arrays, shardings)


def structs(arrays: Any, shardings: Any = None) -> Any:
    """Arrays or `ParamSpec`s → `ShapeDtypeStruct`s, with the given shardings or their own."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: getattr(x, "sharding", None), arrays)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), arrays, shardings
    )
