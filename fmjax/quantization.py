"""Parameters packed into a few bits each: which, how, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from fmjax import quant
from fmjax.convert import Row, targets, write_config
from fmjax.convert.packed import pack
from fmjax.convert.rows import EXPERT, LAYER
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError
from fmjax.models.registry import abstract_params, get_family
from fmjax.parallel import DEFAULT_RULES, param_shardings

UNPACKED = ("falcon",)
"""Families of which transformers packs nothing: their linear layers are a class of their own."""


def packed_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of the kernels that `quantize` packs: the linear layers of the layers.

    What stands outside of the layers stays whole: tables, output heads, classifiers, poolers;
    and so do norms, biases, routers and experts. (transformers by itself skips output heads and
    classifiers without a bias, and packs those with one, poolers too. What is written from here
    lists the skipped names, so that it loads there as it is.)
    """
    rows = get_family(model.config.model_type).rows(model.config)
    found = targets(rows, tree.flatten(abstract_params(model)))
    return tuple(t.path for t in found if LAYER in t.row.hf and t.path.endswith("/kernel"))


def abstract(model: nn.Module, fmt: Any) -> dict[str, Any]:
    """As `fmjax.abstract_params`, with a `Packed` of `ParamSpec`s for each packed kernel.

    Args:
      model: from `fmjax.build`.
      fmt: "nf4", "nf4-single", "int8" or a format of `fmjax.quant`.

    Raises:
      ConfigError: an unknown format.
    """
    fmt, paths = quant.parse(fmt), set(packed_paths(model))
    return tree.map_with_path(
        lambda path, spec: quant.abstract(spec, fmt) if path in paths else spec,
        abstract_params(model),
    )


def quantize(
    model: nn.Module,
    params: tree.Tree,
    fmt: Any,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: logical.Rules | None = None,
) -> dict[str, Any]:
    """The parameters with the kernels at `packed_paths` packed, each from the dtype that it has.

    `fmjax.from_pretrained(dir, quantize=fmt)` gives the same without ever holding all of them.

    Args:
      model: that the parameters belong to.
      params: nested dict of arrays.
      fmt: "nf4" (4.13 bits a weight, scales packed again), "nf4-single" (4.5 bits), "int8", or a
        format of `fmjax.quant`.
      mesh: lays the packed kernels out; None leaves that to the compiler, which follows `params`.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.

    Raises:
      ConfigError: an unknown format, or params that are not the model's or are packed already.
    """
    fmt, flat = quant.parse(fmt), tree.flatten(params)
    specs = tree.flatten(abstract_params(model))
    for path in packed_paths(model):
        if path not in flat:
            raise ConfigError(
                f"params lack {path!r} of the model; pass the tree of from_pretrained or "
                "init_params (mind scan_layers)"
            )
        if isinstance(flat[path], quant.Packed):
            raise ConfigError(f"{path!r} is packed already; dequantise the params first")
        like = quant.abstract(dataclasses.replace(specs[path], dtype=flat[path].dtype), fmt)
        flat[path] = pack(flat[path], fmt, len(like.lead))
        if mesh is not None:
            where = tree.flatten(param_shardings({path: like}, mesh, rules or DEFAULT_RULES))[path]
            flat[path] = jax.device_put(flat[path], where)
    return tree.unflatten(flat)


def dequantize(params: tree.Tree, dtype: Any = None) -> dict[str, Any]:
    """The parameters with every packed kernel as an array again; the others stay as they are.

    Args:
      params: nested dict of arrays and `Packed`.
      dtype: of the unpacked kernels; None takes the one that each was packed from.
    """
    unpack = jax.jit(lambda x: x.dequantize(dtype))
    return tree.map_with_path(lambda _, x: unpack(x) if isinstance(x, quant.Packed) else x, params)


def config(model: nn.Module, flat: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json must say of packed parameters: {"quantization_config": …}, or nothing.

    Args:
      model: that they belong to.
      flat: {path: leaf} of the parameters, abstract or not.

    Raises:
      ConfigError: parameters in several formats, of which a config.json can state one, or of a
        family that transformers does not pack.
    """
    packed = {path: x for path, x in flat.items() if isinstance(x, quant.Packed)}
    if not packed:
        return {}
    if (family := model.config.model_type) in UNPACKED:
        raise ConfigError(
            f"packed parameters of a {family} cannot be written: transformers has no packed form "
            "of its layers; dequantise them, and pack while loading with quantize="
        )
    (path, first), *others = packed.items()
    for other, x in others:
        if type(x) is not type(first):
            raise ConfigError(
                f"{path!r} is packed as {first.name} and {other!r} as {x.name}, of which one "
                "directory holds one; dequantise, and quantise all alike"
            )
    rows = get_family(family).rows(model.config)
    written = write_config(first.format, _skipped(rows, flat), model.execution.dtype)
    return {"quantization_config": written}


def _skipped(rows: Sequence[Row], flat: Mapping[str, Any]) -> list[str]:
    """Names of the linear layers that are not packed, as transformers is to be told."""
    names: list[str] = []
    for target in targets(rows, flat):
        leaf = target.path.rpartition("/")[2]
        if isinstance(flat[target.path], quant.Packed) or not target.row.hf.endswith(".weight"):
            continue
        if leaf == "kernel" or (target.row.copy and leaf == "embedding"):
            names += target.modules
        elif leaf == "weight":  # routers and experts: the end of the name serves for all layers
            stem = target.row.hf.partition(LAYER + ".")[2].partition(f".{EXPERT}")[0]
            names.append(stem.removesuffix(".weight"))
    return list(dict.fromkeys(names))
