"""Parameters of a planned model: shapes, dtypes and axes, without values."""

from typing import Any

import fmjax
from fmjax import quant
from fmjax.core import tree
from fmjax.quantization import packed_paths


def abstract_params(model: Any, precision: str) -> dict[str, Any]:
    """The model's parameters as `ParamSpec`s, linear layers packed as accelerators keep them.

    Args:
      model: the module.
      precision: "none", "nf4" or "int8".
    """
    params = fmjax.abstract_params(model)
    if precision == "none":
        return params
    fmt, paths = quant.parse(precision), set(packed_paths(model))
    return tree.map_with_path(
        lambda path, spec: quant.abstract(spec, fmt, storage="uint4") if path in paths else spec,
        params,
    )
