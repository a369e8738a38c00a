"""LoRA's arrays: which layers have which rank, how they start, what they add to a kernel.

A stacked kernel takes a stacked adapter, whose layers must agree in rank. Where they do not
(`rank_pattern`, `layers_to_transform`), each is padded with zeros to the largest rank: columns
of A and rows of B beyond a layer's own rank, and all of a layer that is not adapted, whose scale
is 0 too. The padding stays exactly zero in training: the gradient of a padded column of A is a
multiple of the same row of B, which is zero, and the reverse, and optimizers leave a zero with a
zero gradient where it is. The same holds of the other leaves: of DoRA, a layer whose scale is 0
gives exactly what its kernel gives.
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.peft import lora_math
from fmjax.peft.base import Base
from fmjax.peft.config import LoRA
from fmjax.peft.lora_sites import Site, sites

DTYPE = np.dtype("float32")


def abstract(spec: LoRA, base: Base) -> dict[str, Any]:
    """The adapter as nested dicts of `ParamSpec`; axes are the kernel's, and "lora" for the rank.

    Leaves of a module: lora_a [in, r], lora_b [r, *out], with DoRA magnitude [*out], with lora_bias
    that [*out], lora_scale [] and, for a linear layer with dropout, lora_dropout []; all f32, and
    with a leading layers axis where the kernel has one. Of experts: lora_a [E, in, r], lora_b
    [E, r, *out]; of a convolution: lora_a [height, width, in, r].
    """
    flat: dict[str, ParamSpec] = {}
    for site in sites(spec, base):
        w = site.weight
        count = (len(w.names),) if w.stacked else ()
        layers = ("layers",) if w.stacked else ()
        leaves = site.leaves(spec) | {"lora_scale": ((), ())}
        if spec.dropout and w.linear:
            leaves["lora_dropout"] = ((), ())
        for name, (shape, axes) in leaves.items():
            flat[f"{w.path}/{name}"] = ParamSpec((*count, *shape), DTYPE, (*layers, *axes))
    return tree.unflatten(flat)


def init(rng: jax.Array, spec: LoRA, base: Base, params: Any = None) -> dict[str, Any]:
    """A fresh adapter that changes nothing yet: one factor is random, the other zero.

    As in PEFT: A ~ U(±1/√in) and B = 0 for a linear layer, A = 0 and B ~ N(0, 1) for an embedding;
    DoRA's magnitude is the norm of the base's kernel. Traceable. With one rank for all layers the
    values do not depend on `scan_layers`.

    Raises:
      ConfigError: DoRA without the base's params.
    """
    flat = constants(spec, base)
    for site in sites(spec, base):
        w = site.weight
        module = w.path if w.tied else w.target.row.path.rpartition("/")[0]
        key = jax.random.fold_in(rng, zlib.crc32(module.encode()))
        numbers = jnp.arange(len(w.names)) + w.target.layer
        draw = _linear if w.linear else _embedding

        def one(number: jax.Array, rank: jax.Array, site=site, key=key, draw=draw) -> Any:
            own = jnp.arange(site.rank) < rank
            shapes = (shape for shape, _ in site.leaves(spec).values())
            return draw(jax.random.fold_in(key, number), next(shapes), next(shapes), own)

        ranks = jnp.asarray(site.ranks)
        a, b = jax.vmap(one)(numbers, ranks) if w.stacked else one(numbers[0], ranks[0])
        leaves = {"lora_a": a, "lora_b": b}
        if spec.lora_bias:
            leaves["lora_bias"] = jnp.zeros((*b.shape[: w.stacked], *w.outputs), DTYPE)
        if spec.use_dora:
            scale = flat[f"{w.path}/lora_scale"]
            leaves["magnitude"] = _magnitude(site, params, leaves | {"lora_scale": scale})
        flat |= {f"{w.path}/{name}": leaf for name, leaf in leaves.items()}
    return tree.unflatten(flat)


def _magnitude(site: Site, params: Any, leaves: dict[str, Any]) -> jax.Array:
    path, w = site.weight.target.path, site.weight
    kernel = tree.flatten(params or {}).get(path)
    if kernel is None or tuple(kernel.shape) != w.spec.shape:
        raise ConfigError(
            f"LoRA: use_dora starts from the norms of {path!r} {w.spec.shape}; pass params= of "
            "this model"
        )

    def one(layer: Any) -> jax.Array:
        kernel, leaves = layer
        found = lora_math.norm(kernel.T if w.tied else kernel, leaves)
        return jnp.where(leaves["lora_scale"] != 0, found, 0)

    # One layer's float32 kernel at a time.
    return jax.lax.map(one, (kernel, leaves)) if w.stacked else one((kernel, leaves))


def _linear(
    key: jax.Array, shape_a: tuple[int, ...], shape_b: tuple[int, ...], own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Of a convolution all of a window's inputs count, of experts each one's own.
    bound = math.prod(shape_a[:-1] if len(shape_a) != 3 else shape_a[1:-1]) ** -0.5
    a = jax.random.uniform(key, shape_a, DTYPE, -bound, bound)
    return jnp.where(own, a, 0), jnp.zeros(shape_b, DTYPE)


def _embedding(
    key: jax.Array, shape_a: tuple[int, ...], shape_b: tuple[int, ...], own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    b = jax.random.normal(key, shape_b, DTYPE)
    return jnp.zeros(shape_a, DTYPE), jnp.where(own[:, None], b, 0)


def constants(spec: LoRA, base: Base) -> dict[str, Any]:
    """{path: array} of the leaves that are not trained."""
    flat: dict[str, Any] = {}
    for site in sites(spec, base):
        w = site.weight
        values = {"lora_scale": site.scales}
        if spec.dropout and w.linear:
            values["lora_dropout"] = (spec.dropout,) * len(w.names)
        for name, numbers in values.items():
            flat[f"{w.path}/{name}"] = np.asarray(numbers if w.stacked else numbers[0], DTYPE)
    return flat


def count(spec: LoRA, base: Base) -> int:
    """Number of trained parameters, padding not counted."""
    total = 0
    for site in sites(spec, base):
        w = site.weight
        lead = math.prod(w.shape[: w.inner == 2])
        per_rank = math.prod(w.inputs) + lead * math.prod(w.outputs)
        vectors = (spec.use_dora + spec.lora_bias) * math.prod(w.outputs)
        total += sum(rank * per_rank + vectors for rank in site.ranks if rank)
    return total
