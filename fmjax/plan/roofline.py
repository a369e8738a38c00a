"""Time from published figures: the longest of arithmetic, memory and interconnect.

The roofline model (Williams et al., doi:10.1145/1498765.1498785): each resource works at its
published rate and all of them at once, so the longest term is the least that a step can take.
"""

import dataclasses
from collections.abc import Mapping

from fmjax.plan.chips import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Time of one step.

    Attributes:
      terms: seconds of each resource alone: matmul, hbm, interconnect.
      seconds: the longest.
      bound_by: its name.
      utilisation: model FLOPs / (seconds · bf16 peak), in 0 to 1 without int8 products.
    """

    terms: Mapping[str, float]
    seconds: float
    bound_by: str
    utilisation: float


def estimate(
    chip: Chip,
    flops: float,
    traffic: float,
    collectives: Mapping[str, int],
    model_flops: float,
    int8_flops: float = 0.0,
) -> Estimate:
    """The roofline of one chip.

        matmul = FLOPs / peak, hbm = bytes / bandwidth, interconnect = bytes / (all links)
        matmul with int8 products = other FLOPs / peak + int8 FLOPs / int8 peak
        time = max(matmul, hbm, interconnect), MFU = model FLOPs / (time · peak)

    Args:
      chip: its figures.
      flops: spent on matrix products, recomputation included.
      traffic: bytes between chip and memory.
      collectives: bytes received over the interconnect, by kind.
      model_flops: that the model needs; utilisation is of the bf16 peak always.
      int8_flops: those of `flops` whose operands are int8.
    """
    terms = {
        "matmul": (flops - int8_flops) / chip.flops + int8_flops / chip.int8_ops,
        "hbm": traffic / chip.bandwidth,
        "interconnect": sum(collectives.values()) / chip.interconnect,
    }
    bound_by = max(terms, key=terms.get)
    longest = terms[bound_by]
    return Estimate(terms, longest, bound_by, model_flops / (longest * chip.flops))
