"""Runs on images; importing this room imports no JAX."""

from fmjax.recipes.vision.classify import Classify
from fmjax.recipes.vision.embed import EmbedImages
from fmjax.recipes.vision.retrieve import Retrieve

__all__ = ["Classify", "EmbedImages", "Retrieve"]
