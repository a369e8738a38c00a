"""From arrays to packed weights: formats by name, quantisation, abstract nodes and layouts."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.quant.int8 import Int8
from fmjax.quant.nf4 import NF4, STORAGES
from fmjax.quant.packed import Packed

Format = NF4 | Int8
FORMATS: dict[str, Format] = {"nf4": NF4(), "nf4-single": NF4(double=False), "int8": Int8()}


def parse(name: str | Format) -> Format:
    """A format by its name; a format is returned as it is.

    Raises:
      ConfigError: an unknown name.
    """
    if isinstance(name, NF4 | Int8):
        return name
    if name not in FORMATS:
        raise ConfigError(f"quantize={name!r} is unknown; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def storage_of(storage: str | None) -> str:
    """How NF4 codes are held: by default uint4 on TPU, which packs them, and else two to a uint8.

    Raises:
      ConfigError: neither "uint4" nor "uint8".
    """
    if storage is None:
        return "uint4" if jax.default_backend() == "tpu" else "uint8"
    if storage not in STORAGES:
        raise ConfigError(f"storage {storage!r} is unknown; choose one of {', '.join(STORAGES)}")
    return storage


def quantize(
    kernel: jax.Array,
    fmt: str | Format = "nf4",
    dtype: Any = None,
    *,
    lead: int = 0,
    storage: str | None = None,
) -> Packed:
    """Packs a kernel [*lead, in, *out]; traceable, one layer after the other.

    Equal bit for bit to what bitsandbytes makes of the torch weight [out, in] on a CPU:
    `quantize_4bit(w, quant_type="nf4", compress_statistics=fmt.double)`, or
    `int8_vectorwise_quant(w)`.

    Args:
      kernel: float32, bfloat16 or float16.
      fmt: see `parse`.
      dtype: to round the kernel to first, and that the packed form stands for; default its own.
      lead: number of leading (layers) axes.
      storage: of NF4 codes, "uint4" or "uint8"; default what suits the backend.

    Raises:
      ConfigError: an unknown format, or a kernel that is not a matrix of these dtypes.
    """
    kernel = jnp.asarray(kernel, dtype)
    _check(kernel.shape[lead:], kernel.dtype)
    return _quantize(kernel, parse(fmt), lead, storage_of(storage))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _quantize(kernel: jax.Array, fmt: Format, lead: int, storage: str) -> Packed:
    if lead:
        return jax.lax.map(lambda layer: _quantize(layer, fmt, lead - 1, storage), kernel)
    return fmt.pack(kernel, storage)


def _check(matrix: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"cannot quantize {dtype.name}; use float32, bfloat16 or float16")
    if len(matrix) < 2 or not math.prod(matrix):
        raise ConfigError(f"cannot quantize an array of shape {matrix}; a kernel is [in, out]")


def abstract(spec: ParamSpec, fmt: str | Format, *, storage: str | None = None) -> Packed:
    """What `quantize` makes of a kernel, as a node of `ParamSpec`s.

    Leading axes are those that are named "layers".
    """
    lead = sum(axis == "layers" for axis in spec.axes)
    dtype = jnp.dtype(spec.dtype)
    _check(spec.shape[lead:], dtype)
    node = parse(fmt).empty(spec.shape[:lead], spec.shape[lead:], dtype, storage_of(storage))
    return specs(node, spec.axes)


def axes(packed: Packed, kernel_axes: logical.Axes) -> Packed:
    """The logical axes of a node's arrays, given those of its kernel: a node of tuples."""
    return packed.axes(tuple(kernel_axes))


def specs(packed: Packed, kernel_axes: logical.Axes) -> Packed:
    """A node of `ParamSpec`s: its arrays' shapes, dtypes and logical axes."""
    return jax.tree.map(
        lambda x, names: ParamSpec(x.shape, x.dtype, names), packed, axes(packed, kernel_axes)
    )


def shardings(
    packed: Packed, kernel_axes: logical.Axes, mesh: Mesh, rules: logical.Rules, name: str
) -> Packed:
    """A node of `NamedSharding`s: as the kernel's, but split only on the boundaries of blocks.

    An input axis whose blocks do not divide over its devices is whole on each of them.

    Raises:
      ShardingError: an axis without a rule, or an output axis that does not divide; names `name`.
    """

    def place(x: Any, names: tuple[str | None, ...]) -> NamedSharding:
        return NamedSharding(mesh, logical.spec(names, rules, mesh, x.shape, name=name))

    lead = len(kernel_axes) - len(packed.matrix)
    if not _divides(packed, kernel_axes, lead, mesh, rules, name):
        kernel_axes = (*kernel_axes[:lead], None, *kernel_axes[lead + 1 :])
    return jax.tree.map(place, packed, axes(packed, kernel_axes))


def _divides(
    packed: Packed, names: logical.Axes, lead: int, mesh: Mesh, rules: logical.Rules, name: str
) -> bool:
    entry = logical.spec(names, rules, mesh, name=name)[lead]
    over = logical.mesh_axes(entry)
    blocks = packed.matrix[0] // getattr(packed, "blocksize", 1)
    return blocks % math.prod(mesh.shape[a] for a in over) == 0
