"""Runs on images; importing this room imports no JAX."""

from fmjax.recipes.vision.classify import Classify
from fmjax.recipes.vision.embed import EmbedImages
from fmjax.recipes.vision.pretrain import PretrainImages
from fmjax.recipes.vision.retrieve import Retrieve
from fmjax.recipes.vision.settings import Heads, ImageOptimization, Images, Probing, Views

__all__ = [
    "Classify",
    "EmbedImages",
    "Heads",
    "ImageOptimization",
    "Images",
    "PretrainImages",
    "Probing",
    "Retrieve",
    "Views",
]
