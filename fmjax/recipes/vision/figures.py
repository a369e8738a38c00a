"""What the papers of the objectives train with, where a run does not say."""

import dataclasses

from fmjax.core.errors import ConfigError
from fmjax.recipes.vision.settings import ImageOptimization


@dataclasses.dataclass(frozen=True)
class Figures:
    """Settings of one paper.

    Attributes:
      learning_rate: for a batch of `rows`, with which it grows.
      rows: None: it does not grow.
      power: of the batch, with which it grows.
      weight_decay: at the start.
      final_weight_decay: at the end, along a cosine; None keeps it.
      beta2, epsilon: of AdamW.
      warmup: share of the updates.
      clip_norm: 0 for none.
      smallest_crop: see `Views`.
      teacher_momentum, teacher_temperature: see `Heads`.
    """

    learning_rate: float
    rows: int | None
    weight_decay: float
    beta2: float
    warmup: float
    smallest_crop: float
    power: float = 1.0
    final_weight_decay: float | None = None
    epsilon: float = 1e-8
    clip_norm: float = 0.0
    teacher_momentum: float = 0.996
    teacher_temperature: float = 0.04


# DeiT (arXiv:2012.12877), MAE (2111.06377), SimCLR (2002.05709; AdamW's rate as for MoCo v3,
# 2104.02057), DINO (2104.14294), DINOv2 (2304.07193, the rate of its small models), CLIP
# (2103.00020), SigLIP (2303.15343).
FIGURES = {
    "supervised": Figures(5e-4, 512, 0.05, 0.999, 0.017, 0.08),
    "mae": Figures(1.5e-4, 256, 0.05, 0.95, 0.05, 0.2),
    "simclr": Figures(1.5e-4, 256, 0.1, 0.999, 0.1, 0.08),
    "dino": Figures(5e-4, 256, 0.04, 0.999, 0.1, 0.4, final_weight_decay=0.4, clip_norm=3.0),
    "dinov2": dataclasses.replace(
        Figures(1e-3, 2048, 0.04, 0.999, 0.16, 0.32, 0.5, final_weight_decay=0.2, clip_norm=3.0),
        teacher_momentum=0.994,
        teacher_temperature=0.07,
    ),
    "clip": Figures(5e-4, None, 0.2, 0.98, 0.05, 0.9, epsilon=1e-6),
    "siglip": Figures(1e-3, None, 1e-4, 0.95, 0.05, 0.9, clip_norm=1.0),
}
LARS = Figures(0.3, 256, 1e-6, 0.0, 0.1, 0.08)
"""SimCLR's own, for a ResNet."""


def completed(
    optimization: ImageOptimization, objective: str, batch_size: int, residual: bool
) -> tuple[ImageOptimization, Figures]:
    """The settings with every figure that was not given, and the paper's.

    Args:
      residual: the encoder is a ResNet.

    Raises:
      ConfigError: LARS for an objective that it was not published for.
    """
    chosen = optimization.optimizer
    if chosen == "auto":
        chosen = "lars" if objective == "simclr" and residual else "adamw"
    if chosen == "lars" and objective not in ("simclr", "supervised"):
        raise ConfigError(
            f"--optimizer lars is for simclr and supervised, not for --objective {objective}"
        )
    paper = LARS if chosen == "lars" else FIGURES[objective]
    grown = paper.learning_rate * (
        1.0 if paper.rows is None else (batch_size / paper.rows) ** paper.power
    )
    figures = {
        "learning_rate": grown,
        "warmup": round(paper.warmup * optimization.steps),
        "weight_decay": paper.weight_decay,
        "beta2": paper.beta2,
        "clip_norm": paper.clip_norm,
    }
    missing = {k: v for k, v in figures.items() if getattr(optimization, k) is None}
    return dataclasses.replace(optimization, optimizer=chosen, **missing), paper
