"""Where a run on images begins: architecture, weights, tokenizer, and how pixels are normalised."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

import fmjax
from fmjax.core import tree
from fmjax.core.errors import ConfigError, TokenizerError
from fmjax.data import Tokenizer, check_fits, load_tokenizer
from fmjax.data.images import ImageProcessor
from fmjax.hub import read_config
from fmjax.models.config import ModelConfig
from fmjax.models.registry import get_family, presets
from fmjax.recipes.models import architecture, parse_override
from fmjax.recipes.vision.pretrain import PretrainImages


@dataclasses.dataclass(frozen=True)
class ImageStart:
    """See the module.

    Attributes:
      config: the architecture.
      directory: whose weights to start from; None starts from random ones.
      tokenizer: of models that read texts too; else None.
      processor: how pictures become pixel values when the trained model is used.
      image_size: side of the square that the model sees, in pixels.
      mean, std: of the channels, that pixels are normalised by.
      caption_length: tokens of a caption; 0 without texts.
    """

    config: ModelConfig
    directory: Path | None
    tokenizer: Tokenizer | None
    processor: ImageProcessor
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caption_length: int
