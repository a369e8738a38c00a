"""FLOPs that a model needs, whatever an implementation spends."""

import math
import re
from collections.abc import Mapping
from typing import Any

from fmjax.core import tree


def matmul_params(params: Mapping[str, Any], expert_share: float = 1.0) -> int:
    """N: parameters that multiply activations in a language model.

    All but the embedding tables, which are looked up; the output head counts. A tied head is the
    largest table, counted once.

    Args:
      params: nested dict of arrays, `ShapeDtypeStruct`s or `ParamSpec`s.
      expert_share: of a mixture's experts, those that a token visits: K / E.
    """
    sizes = {
        path: math.prod(x.shape) * (expert_share if re.search(r"(^|/)experts/", path) else 1)
        for path, x in tree.flatten(params).items()
    }
    tables = [n for path, n in sizes.items() if re.search(r"(^|/)embedding$", path)]
    tied = not any(re.search(r"(^|/)lm_head/", path) for path in sizes)
    return round(sum(sizes.values()) - sum(tables) + (max(tables, default=0) if tied else 0))


def train_flops_per_token(
    params: int,
    *,
    layers: int,
    attention_width: int,
    sequence_length: int,
    causal: bool = True,
    frozen: int = 0,
) -> float:
    """Model FLOPs of one token's forward and backward pass.

        6·N + 4·N_frozen + 12·L·T·A, the last term halved if causal

    A multiply-add is 2 FLOPs; the backward pass costs a product for the activations and one for
    the weights, the latter not for frozen ones. Attention takes 2·T·A for its scores and as much
    for its values, forward, and twice that backward (arXiv:2204.02311, appendix B); causal
    attention needs half of it. Recomputation (remat) does not count.

    Args:
      params: N of the trained parameters, see `matmul_params`.
      layers: L.
      attention_width: A = heads · head_dim.
      sequence_length: T.
      causal: whether a query sees the past only.
      frozen: N of parameters below trained ones that are not trained themselves (LoRA's base).
    """
    attention = 12 * layers * sequence_length * attention_width
    return 6 * params + 4 * frozen + (attention / 2 if causal else attention)
