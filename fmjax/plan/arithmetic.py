"""FLOPs of a traced program: its matrix products, counted with every round of every scan.

A product of [m, k] and [k, n] is 2·m·k·n. What is elementwise does not count: memory bounds it.
Recomputation counts, as it stands in the traced backward pass.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of a closed jaxpr, of all devices together; what nothing depends on does not count.

    A branch counts as its dearest. A loop of unknown length counts once.
    """
    live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _count(live)


def _count(jaxpr: Any) -> float:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        k = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * k
    if name == "ragged_dot_general":
        return _ragged(eqn)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / features
    inner = [_count(found) for found in _inner(params)]
    if name == "cond":
        return max(inner)
    if name == "pallas_call":
        return _kernel(params, sum(inner))
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        # Its shapes are those of one device.
        return params["mesh"].size * sum(inner)
    return sum(inner)


def _ragged(eqn: Any) -> float:
    """Each row meets the matrix of its own group, so that groups cost nothing."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    # Rows that are contracted leave a matrix for each group, in front.
    groups = out[0] if numbers.lhs_ragged_dimensions[0] in contracted else 1
    return 2.0 * math.prod(out) * math.prod(lhs[d] for d in contracted) / groups


def _kernel(params: Any, body: float) -> float:
    """A Pallas kernel: what it states itself, else every step of its grid."""
    stated = params.get("cost_estimate")
    if stated is not None and stated.flops:
        return float(stated.flops)
    return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int)) * body


def _inner(params: Any) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
