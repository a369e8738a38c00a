"""A model with an objective on it, ready for a step, and what to do with it afterwards.

Shapes: B rows, H × W pixels, C channels, D width of the features.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from fmjax.core.errors import ConfigError
from fmjax.models.config import ModelConfig
from fmjax.recipes.vision.figures import Figures
from fmjax.recipes.vision.pretrain import PretrainImages
from fmjax.recipes.vision.settings import Heads, ImageOptimization, Views
from fmjax.recipes.vision.start import ImageStart
from fmjax.train import TrainState

Batch = Mapping[str, jax.Array]
Augment = Callable[[jax.Array, Batch], Batch]


@dataclasses.dataclass(frozen=True)
class Given:
    """What learners are made from.

    Attributes:
      config: of the model, as the settings name it.
      execution: keyword arguments of `fmjax.build`.
      views, heads: of the settings; in heads with every figure.
      image_size: side of the square that the model sees, in pixels.
      mean, std: of the channels, that pixels are normalised by.
      classes: names of the labels; empty without.
      steps: of the run.
      frozen_steps: of the last layer of DINO's head.
      smallest_crop: share of a picture.
      pooling: of the settings: what features are taken from.
    """

    config: ModelConfig
    execution: Mapping[str, Any]
    views: Views
    heads: Heads
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    steps: int
    frozen_steps: int
    smallest_crop: float
    pooling: str = "auto"

    @classmethod
    def of(
        cls,
        settings: PretrainImages,
        optimization: ImageOptimization,
        paper: Figures,
        start: ImageStart,
        classes: tuple[str, ...],
        execution: Mapping[str, Any],
    ) -> "Given":
        """From the settings of a run, completed."""
        views, frozen = settings.views, settings.heads.frozen_head_steps
        names = ("teacher_momentum", "teacher_temperature")
        published = {n: getattr(paper, n) for n in names if getattr(settings.heads, n) is None}
        crop = views.smallest_crop
        return cls(
            start.config,
            execution,
            views,
            dataclasses.replace(settings.heads, **published),
            start.image_size,
            start.mean,
            start.std,
            classes,
            optimization.steps,
            optimization.steps // 100 if frozen is None else frozen,
            paper.smallest_crop if crop is None else crop,
            settings.probing.features,
        )

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels; 32, over which a ResNet takes its steps, where there is none.

        Raises:
          ConfigError: patches that are not square.
        """
        patch = getattr(self.config, "patch_size", 32)
        if not isinstance(patch, int):
            raise ConfigError(f"patches of {patch} pixels; crops need square ones")
        return patch

    def view(self) -> dict[str, Any]:
        """What all views share, as keyword arguments of `fmjax.data.augment.View`."""
        return {
            "flip": 0.5 if self.views.flip else 0.0,
            "rand_augment": (2, 9) if self.views.rand_augment else None,
            "scale": (self.smallest_crop, 1.0),
            "mean": self.mean,
            "std": self.std,
        }


@dataclasses.dataclass(frozen=True)
class Learner:
    """See the module.

    Attributes:
      module: what the step applies.
      objective: of its outputs, given what `augment` makes.
      augment: (key, raw batch) → batch, in training.
      features: (variables, extra, pixel_values f32 [B, H, W, C]) → f32 [B, D], by which pictures
        are compared; None compares nothing.
      export: (state) → (model, params) of what the run leaves behind.
      trainable: rules of the step; None trains all.
      evaluates: the objective means something on single held-out views.
      reconstructs: the module predicts hidden pixels.
      held_steps: updates before the last layer of a head is trained.
      needs: what the pictures must have: "labels", "captions" or nothing.
    """

    module: nn.Module
    objective: Any
    augment: Augment
    features: Callable[[Any, Any, jax.Array], jax.Array] | None
    export: Callable[[TrainState], tuple[nn.Module, Any]]
    trainable: Any = None
    evaluates: bool = True
    reconstructs: bool = False
    held_steps: int = 0
    needs: str = ""
