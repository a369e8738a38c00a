"""FLOPs of a traced program: its matrix products, counted with every round of every scan.

A product of [m, k] and [k, n] is 2·m·k·n. What is elementwise does not count: memory bounds it.
Recomputation counts, as it stands in the traced backward pass.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.interpreters import partial_eval

Known = Mapping[Any, Any]
"""Variables whose value is known while tracing, and the values."""


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program spends on matrix products.

    Attributes:
      flops: of all devices together.
      int8: those of them whose operands are both int8.
      unknown: loops with products whose length depends on data; they count once.
    """

    flops: float
    int8: float
    unknown: int


def count(jaxpr: Any) -> Count:
    """FLOPs of a closed jaxpr; what nothing depends on does not count.

    A branch counts as its dearest.
    """
    live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    known = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    flops, int8, unknown = _jaxpr(live, known)
    return Count(float(flops), float(int8), int(unknown))


def matmul_flops(jaxpr: Any) -> float:
    """`count(jaxpr).flops`."""
    return count(jaxpr).flops


def _jaxpr(jaxpr: Any, known: Known) -> np.ndarray:
    """f64 [3]: FLOPs, those of int8 operands, loops of unknown length."""
    return sum((_equation(eqn, known) for eqn in jaxpr.eqns), np.zeros(3))


def _equation(eqn: Any, known: Known) -> np.ndarray:
    name, params = eqn.primitive.name, eqn.params
    if name in _PRODUCTS:
        flops = _PRODUCTS[name](eqn)
        return np.array([flops, flops * _is_int8(eqn), 0.0])
    inner = [_jaxpr(body, _inside(eqn, body, known)) for body in _bodies(params)]
    if not inner:
        return np.zeros(3)
    if name == "cond":
        return max(inner, key=lambda found: found[0])
    total = sum(inner)
    if name == "pallas_call":
        return np.array([_kernel(eqn, total[0], known), 0.0, 0.0])
    if name == "scan":
        return total * (params["length"], params["length"], 1)
    if name == "while" and total[0]:
        return total + (0, 0, 1)
    if name == "shard_map":
        # Its shapes are those of one device.
        return total * (params["mesh"].size, params["mesh"].size, 1)
    return total


def _inside(eqn: Any, body: Any, known: Known) -> Known:
    """What is known of a body's variables, where they are the equation's own."""
    if len(body.invars) != len(eqn.invars):
        return {}
    values = ((b, _value(a, known)) for a, b in zip(eqn.invars, body.invars, strict=True))
    constant = len(body.invars) if eqn.primitive.name != "scan" else _constants(eqn)
    return {b: x for i, (b, x) in enumerate(values) if x is not None and i < constant}


def _constants(scan: Any) -> int:
    """How many of a scan's operands are the same in every turn; they come first."""
    if "num_consts" in scan.params:
        return scan.params["num_consts"]
    # jax 0.12 has the trees of constants, carry and what is scanned in its place.
    return len(list(scan.params["ft_in"].update(scan.invars).unpack()[0]))


def _value(atom: Any, known: Known) -> Any:
    return atom.val if hasattr(atom, "val") else known.get(atom)


def _is_int8(eqn: Any) -> bool:
    return all(operand.aval.dtype == np.int8 for operand in eqn.invars[:2])


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    k = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * k


def _convolution(eqn: Any) -> float:
    kernel = eqn.invars[1].aval.shape
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / features


def _ragged(eqn: Any) -> float:
    """Each row meets the matrix of its own group, so that groups cost nothing."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    # Rows that are contracted leave a matrix for each group, in front.
    groups = out[0] if numbers.lhs_ragged_dimensions[0] in contracted else 1
    return 2.0 * math.prod(out) * math.prod(lhs[d] for d in contracted) / groups


_PRODUCTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "ragged_dot_general": _ragged,
}


def _kernel(eqn: Any, body: float, known: Known) -> float:
    """A Pallas kernel: what it states itself, else the steps of its grid that do not skip.

    Splash attention is told by its second index operand which blocks of the mask are not empty.
    """
    stated, mapping = eqn.params.get("cost_estimate"), eqn.params["grid_mapping"]
    if stated is not None and stated.flops:
        return float(stated.flops)
    steps = math.prod(n for n in mapping.grid if isinstance(n, int))
    if str(eqn.params.get("name", "")).startswith("splash") and mapping.num_index_operands > 1:
        blocks = _value(eqn.invars[1], known)
        if blocks is not None and blocks.ndim == 3:
            steps *= float(np.mean(np.asarray(blocks) != 0))
    return steps * body


def _bodies(params: Any) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
