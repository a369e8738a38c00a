"""Paths over nested dicts: the one way in which fmjax names, selects and splits parameters.

Parameters are plain nested dicts. A path joins the keys with "/", for example
"layers/self_attn/q_proj/kernel". Anything that is not a dict is a leaf, so a packed array node
that stands where a kernel stood keeps the kernel's path.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.core.errors import ConfigError

Tree = Mapping[str, Any]
Flat = dict[str, Any]


def flatten(tree: Tree, prefix: str = "") -> Flat:
    """Nested dict → {path: leaf}, in insertion order."""
    flat: Flat = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= flatten(value, path)
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} → nested dict; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = leaf
    return tree


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> dict[str, Any]:
    """Applies `fn(path, leaf, *leaves_of_rest)` to every leaf; `rest` share the structure."""
    others = [flatten(r) for r in rest]
    return unflatten({p: fn(p, x, *(o[p] for o in others)) for p, x in flatten(tree).items()})


def match_rules(rules: Sequence[tuple[str, Any]], tree: Tree, what: str = "rule") -> dict[str, Any]:
    """The value of the first rule `(regex, value)` found in each path, as a tree.

    Raises:
      ConfigError: a path that no rule covers. End the list with `(".*", default)` to cover all.
    """

    def value(path: str, _: Any) -> Any:
        for pattern, result in rules:
            if re.search(pattern, path):
                return result
        raise ConfigError(f"no {what} covers parameter {path!r}; add one, or end with ('.*', …)")

    return map_with_path(value, tree)


def partition(tree: Tree, mask: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree by a tree of bools into (selected, rest); emptied branches disappear."""
    keep = flatten(mask)
    flat = flatten(tree)
    return (
        unflatten({p: x for p, x in flat.items() if keep[p]}),
        unflatten({p: x for p, x in flat.items() if not keep[p]}),
    )


def combine(*trees: Tree) -> dict[str, Any]:
    """Joins trees with disjoint paths; the inverse of `partition`.

    Raises:
      ConfigError: a path that two trees hold.
    """
    flat: Flat = {}
    for tree in trees:
        for path, leaf in flatten(tree).items():
            if path in flat:
                raise ConfigError(f"parameter {path!r} stands in both trees that are combined")
            flat[path] = leaf
    return unflatten(flat)


def count(tree: Any) -> int:
    """Number of array elements in a pytree; of a packed array, of what it stands for."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return sum(int(np.prod(x.shape)) for x in leaves)


def nbytes(tree: Any) -> int:
    """Bytes of a pytree's arrays (or `ShapeDtypeStruct`s): the logical size, over all devices.

    Arrays of less than a byte an element count as what accelerators keep of them.
    """
    leaves = jax.tree.leaves(tree)
    bits = (int(np.prod(x.shape)) * jax.dtypes.itemsize_bits(x.dtype) for x in leaves)
    return sum(-(-n // 8) for n in bits)
