"""The one place where parameters come from: shape, initialiser and logical axes together.

Parameters are plain arrays in nested dicts. Their logical axes are not stored beside them but
recorded while the model is traced, which gives the abstract tree: the one description from which
initialisation, placement, checkpoints and planning derive.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax

from fmjax.core import tree
from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.nn import bank_port
from fmjax.quant import Packed

_record: ContextVar[dict[str, tuple[str | None, ...]] | None] = ContextVar("axes", default=None)


def param(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any,
    *,
    between: int | None = None,
    packed: bool = False,
) -> jax.Array | Packed:
    """Declares (or reads) a parameter of `module` whose dimensions bear the names `axes`.

    A copy of it in the module's adapter, under the same name, is read in its place. In a bank of
    adapters each row of the batch has its own, and the result has the leading axes [B, 1 × between]
    then; None says that the module cannot use that.

    Args:
      module: that owns the parameter.
      name: in the module.
      init: initialiser.
      shape, axes, dtype: of the array.
      between: axes that the module's input has between its batch and those of the parameter.
      packed: whether the caller can use a packed weight, and returns one where it stands.

    Raises:
      ConfigError: a copy or a packed weight of another shape; a packed weight that cannot be used
        here; a copy for each row where `between` is None.
    """
    record = _record.get()
    if record is not None:
        record["/".join((*module.path, name))] = axes
    if module.has_variable(COLLECTION, name):
        bank = bank_port.of(module, name)
        if bank is None:
            return _copy(module, name, shape)
        original = module.param(name, init, shape, dtype)
        return bank_port.copy(module, name, bank, original, between)
    if module.has_variable("params", name):
        held = module.get_variable("params", name)
        if isinstance(held, Packed):
            return _packed(module, name, held, shape, packed)
    return module.param(name, init, shape, dtype)


def _packed(
    module: nn.Module, name: str, held: Packed, shape: tuple[int, ...], usable: bool
) -> Packed:
    path = "/".join((*module.path, name))
    if not usable:
        raise ConfigError(
            f"{path!r} is packed in {held.name}, which only the kernels of linear layers can be; "
            "dequantize it"
        )
    if held.shape != shape:
        raise ConfigError(
            f"{path!r} is packed from shape {held.shape} where the model has {shape}; use the "
            "config that it was made for"
        )
    return held


def _copy(module: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array:
    copy = module.get_variable(COLLECTION, name)
    if copy.shape != shape:
        raise ConfigError(
            f"the adapter's {'/'.join((*module.path, name))!r} has shape {copy.shape} where the "
            f"model has {shape}; use the model that it was made for"
        )
    return copy


def abstract(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `model` as nested dicts of `ParamSpec`, without computing anything.

    A scanned stack adds leading dimensions that the layer did not declare: those are "layers".
    """
    record: dict[str, tuple[str | None, ...]] = {}
    token = _record.set(record)
    try:
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs)["params"])
    finally:
        _record.reset(token)

    def leaf(path: str, x: jax.ShapeDtypeStruct) -> ParamSpec:
        axes = record[path]
        return ParamSpec(x.shape, x.dtype, ("layers",) * (len(x.shape) - len(axes)) + axes)

    return tree.map_with_path(leaf, shapes)
