"""Retrieval between images and texts, both ways.

Shapes: I images, T texts, D width of the embeddings.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals.embeddings import positive_ranks
from fmjax.evals.features import checked, same_width
from fmjax.evals.figure import Figure, mean_figure


@dataclasses.dataclass(frozen=True)
class Direction:
    """Queries of one kind, answers of the other.

    Attributes:
      recall: by k, the share of queries for which a right answer is among the first k.
      chance: by k, the same of answers in random order.
      median_rank: of the first right answer, from 1.
    """

    recall: dict[int, Figure]
    chance: dict[int, float]
    median_rank: float


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Both directions of retrieval."""

    text_to_image: Direction
    image_to_text: Direction


def retrieval(
    image_embeds: Any,
    text_embeds: Any,
    image_of_text: Any = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """R@k by cosine; an image may have several texts, of which the nearest counts.

    Ties count against the right answer. Intervals draw images, each with all its texts, since texts
    of one image are alike.

    Args:
      image_embeds: f[I, D].
      text_embeds: f[T, D].
      image_of_text: i[T], the image that each text is of; default text i is of image i.
      ks: numbers of answers that are looked at.

    Raises:
      DataError: embeddings that do not fit, or a text of no image. Images without a text are looked
        through, but are no queries.
      ConfigError: a k smaller than 1.
    """
    images, texts = checked(image_embeds, "image"), checked(text_embeds, "text")
    same_width(images, texts, "image", "text")
    if not ks or min(ks) < 1:
        raise ConfigError(f"retrieval: ks {list(ks)} must be at least 1")
    owner = np.arange(len(texts)) if image_of_text is None else np.asarray(image_of_text)
    named = owner.shape == (len(texts),) and np.issubdtype(owner.dtype, np.integer)
    if not named or owner.min() < 0 or owner.max() >= len(images):
        raise DataError(
            f"retrieval: {len(texts)} texts must each name one of {len(images)} images; got "
            f"{owner.dtype}{list(owner.shape)} between {owner.min()} and {owner.max()}"
        )
    order = np.argsort(owner, kind="stable")
    queries, starts = np.unique(owner[order], return_index=True)
    positives = np.split(order, starts[1:])
    return Retrieval(
        text_to_image=_direction(
            positive_ranks(texts, images, owner), np.ones(len(texts), int), len(images), ks, owner
        ),
        image_to_text=_direction(
            positive_ranks(images[queries], texts, positives),
            np.array([len(p) for p in positives]), len(texts), ks, None
        ),
    )  # fmt: skip


def _direction(
    ranks: np.ndarray, right: np.ndarray, candidates: int, ks: Sequence[int], groups: Any
) -> Direction:
    """Of each query: its rank, and how many of the candidates are right."""
    numbers, times = np.unique(right, return_counts=True)
    return Direction(
        recall={k: mean_figure(ranks <= k, groups) for k in ks},
        chance={
            k: float(np.average([_chance(n, candidates, k) for n in numbers], weights=times))
            for k in ks
        },
        median_rank=float(np.median(ranks)),
    )


def _chance(right: int, candidates: int, k: int) -> float:
    """How probably k of the candidates, drawn at random, hold one of the right ones."""
    k = min(k, candidates)
    return 1 - math.comb(candidates - int(right), k) / math.comb(candidates, k)
