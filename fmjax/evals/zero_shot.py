"""Classification of images by the texts that name the classes.

Shapes: B images, N classes, D width of the embeddings.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals.features import checked, labelled, same_width
from fmjax.evals.figure import Figure, mean_figure

TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a picture of the {}.",
    "a drawing of a {}.",
    "a close view of a {}.",
    "a {} seen from afar.",
    "an icon of a {}.",
)
"""Sentences around a class name that suit photographs and drawings."""


def class_embeddings(
    embed_texts: Callable[[list[str]], Any],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> np.ndarray:
    """f32[N, D]: of each class the mean of its normalised prompts, normalised (CLIP's ensemble).

    Args:
      embed_texts: texts → f[texts, D]; is called once, with all prompts.
      names: of the classes.
      templates: sentences in which "{}" stands for the name.

    Raises:
      ConfigError: no class, two of one name, no template, or one without "{}".
      DataError: embeddings that are no matrix with a row for each prompt.
    """
    names = [name.strip() for name in names]
    if not names or len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"class names {names} must be different from each other and not empty")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ConfigError(f"templates {wrong} must each hold one {{}} for the name of the class")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    found = checked(embed_texts(prompts), "prompt")
    if len(found) != len(prompts):
        raise DataError(f"{len(prompts)} prompts have {len(found)} embeddings; give one for each")
    means = unit(found).reshape(len(names), len(templates), -1).mean(1)
    return unit(means)


def zero_shot(
    image_embeds: Any, classes: Any, labels: Any, *, ks: Sequence[int] = (1, 5)
) -> dict[int, Figure]:
    """Accuracy by k: the right class is among the k whose embeddings are nearest by cosine.

    A class that is as near as the right one counts as nearer, so that embeddings which are all
    alike find nothing.

    Args:
      image_embeds: f[B, D].
      classes: f[N, D], of `class_embeddings`.
      labels: i[B], below N.
      ks: those above N are left out.

    Raises:
      DataError: embeddings and labels that do not fit.
    """
    images, labels = labelled(image_embeds, labels, "image")
    classes = checked(classes, "class")
    same_width(images, classes, "image", "class")
    if labels.max() >= len(classes):
        raise DataError(f"image labels: {labels.max()} is none of {len(classes)} classes")
    cosines = unit(images) @ unit(classes).T
    right = cosines[np.arange(len(labels)), labels]
    ranks = np.count_nonzero(cosines >= right[:, None] - 1e-7, -1)
    return {k: mean_figure(ranks <= k) for k in ks if k <= len(classes)}


def zero_shot_probabilities(image_embeds: Any, classes: Any, scale: float) -> np.ndarray:
    """f64[B, N]: softmax over the classes of scale × cosine; `scale` is e^logit_scale of CLIP.

    Raises:
      DataError: embeddings that do not fit.
    """
    images, classes = checked(image_embeds, "image"), checked(classes, "class")
    same_width(images, classes, "image", "class")
    logits = scale * (unit(images).astype(np.float64) @ unit(classes).T)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)
