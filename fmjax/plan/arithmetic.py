"""FLOPs of a traced program: its matrix products, counted with every round of every scan.

A product of [m, k] and [k, n] is 2·m·k·n. What is elementwise does not count: it is bound by memory.
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
    if name in ("ragged_dot", "ragged_dot_general"):
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
    """Each row meets the matrix of its own group: rows · k · n, forward and backward."""
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
    # [m, k] × [g, k, n], or with the rows contracted [m, k] × [m, n].
    return 2.0 * math.prod(lhs) * rhs[-1]


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
