"""Modules that are trained whole beside an adapter: PEFT's `modules_to_save`.

Most often the new head of a classifier; biases (`fmjax.peft.biases`) are held in the same way. The
adapter holds float32 copies of their parameters, each under its own path, and `fmjax.nn.param`
reads a copy in place of the parameter.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.core.params import ParamSpec
from fmjax.peft import biases
from fmjax.peft.base import PREFIX, Base, Weight
from fmjax.peft.config import saved_by
from fmjax.quant import Packed

DTYPE = np.dtype("float32")


def saved(spec: Any, base: Base) -> list[Weight]:
    """The parameters that `spec` has copies of, in the model's order, biases last.

    Raises:
      ConfigError: a name that covers what has no copy of its own here (mixtures, a table that the
        head shares), only some of a stack, or a module inside another.
    """
    found = []
    for weight in base.params:
        covered = [spec.saves(name) for name in weight.names]
        if any(covered):
            _check(spec, base, weight, covered)
            found.append(weight)
    for name, path in base.tied.items():
        if spec.saves(name) or any(w.target.path == f"{path}/embedding" for w in found):
            raise _refused(
                spec,
                f"{name!r}, which shares the table at {path!r}",
                "name only modules that share nothing, or untie the model "
                "(tie_word_embeddings=False)",
            )
    return found + biases.trained(spec, base)


def _check(spec: Any, base: Base, weight: Weight, covered: list[bool]) -> None:
    name = weight.names[covered.index(True)]
    by = saved_by(spec.modules_to_save, name)
    if len(by) > 1:
        raise _refused(spec, f"{by[1]!r} inside {by[0]!r}", "name one of them")
    if weight.target.row.fused is not None:
        # Experts and routers: their modules have other names in transformers 5.
        raise _refused(
            spec,
            f"{name!r} of a mixture of experts",
            "name modules without experts, or train all parameters",
        )
    if not all(covered):
        other = weight.names[covered.index(False)]
        raise _refused(
            spec,
            f"{name!r} but not {other!r}, which lies in the same array",
            "name all layers, or build the model with scan_layers=False",
        )


def _refused(spec: Any, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"modules_to_save={spec.modules_to_save!r} cover {what}; {remedy}")


def check(spec: Any, base: Base) -> None:
    """Refuses a name that covers no module of the model.

    Raises:
      ConfigError: such a name; and as `saved`.
    """
    saved(spec, base)
    for wanted in spec.modules_to_save:
        if not present(wanted, base):
            raise ConfigError(
                f"modules_to_save {wanted!r} matches no module of this {base.architecture}; "
                f"correct or remove it (layers: {', '.join(base.kinds())})"
            )


def present(wanted: str, base: Base) -> bool:
    """Whether a name in modules_to_save covers anything."""
    return any(name.endswith(wanted) for name in base.modules())


def abstract(spec: Any, base: Base) -> dict[str, ParamSpec]:
    """{path: `ParamSpec`} of the copies, with the axes of their originals."""
    return {w.target.path: ParamSpec(w.spec.shape, DTYPE, w.spec.axes) for w in saved(spec, base)}


def init(spec: Any, base: Base, params: Any) -> dict[str, jax.Array]:
    """{path: copy} of what `params` hold; traceable.

    Raises:
      ConfigError: params that are not given, not the model's or packed.
    """
    copies = abstract(spec, base)
    if copies and params is None:
        raise ConfigError(f"{_what(spec)} start as the base has them; pass params=")
    flat = tree.flatten(params or {})
    for path, expected in copies.items():
        own = flat.get(path)
        if isinstance(own, Packed) or getattr(own, "shape", None) != expected.shape:
            raise ConfigError(
                f"params have no array {path!r} {expected.shape}, which {_what(spec)} copy; "
                "use the params of this model, not packed"
            )
    # Copies even of float32: training donates the adapter, and the base must outlive that.
    return {path: jnp.copy(flat[path]).astype(DTYPE) for path in copies}


def _what(spec: Any) -> str:
    bias = getattr(spec, "bias", "none")
    fields = [f"modules_to_save={spec.modules_to_save!r}"] * bool(spec.modules_to_save)
    return " and ".join(fields + [f"bias={bias!r}"] * (bias != "none"))


def count(spec: Any, base: Base) -> int:
    """Number of parameters in the copies."""
    return tree.count([w.spec.struct() for w in saved(spec, base)])


# --- in the PEFT library's files -----------------------------------------------------------------


def shapes(spec: Any, base: Base) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape}."""
    return {
        PREFIX + key: w.target.file_shape
        for w in saved(spec, base)
        for key in biases.keys(spec, base, w)
    }


def pack(spec: Any, base: Base, flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the copies out of an adapter {path: array} → {name in the file: array}.

    Raises:
      CheckpointError: a copy that is missing or of another shape.
    """
    found: dict[str, np.ndarray] = {}
    for weight in saved(spec, base):
        target = weight.target
        copy = flat.pop(target.path, None)
        if copy is None or copy.shape != target.shape:
            raise CheckpointError(
                f"the adapter lacks {target.path!r} {target.shape}, which {_what(spec)} ask for; "
                "save it with the spec and the model that it was made for"
            )
        for i, key in enumerate(biases.keys(spec, base, weight)):
            found[PREFIX + key] = target.row.transform.inverse(copy[target.index(i)])
    return found


def unpack(spec: Any, base: Base, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name in the file: array} → {path: copy}; the inverse of `pack`."""
    found: dict[str, np.ndarray] = {}
    for weight in saved(spec, base):
        target = weight.target
        keys = biases.keys(spec, base, weight)
        parts = [target.row.transform.forward(tensors[PREFIX + key]) for key in keys]
        found[target.path] = np.stack(parts).reshape(target.shape)
    return found
