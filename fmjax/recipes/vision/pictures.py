"""Sections of a report that show what an image encoder does.

Shapes: B images of H × W pixels, h × w patches, D width.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fmjax import report
from fmjax.evals import Neighbours, Reconstruction, patch_pca
from fmjax.nn.attention_maps import attention_maps


def attention_section(
    model: Any,
    variables: Mapping[str, Any],
    pixel_values: Any,
    images: Sequence[Any],
    *,
    layer: int = -1,
    query: int | None = 0,
) -> str:
    """Where each head of a layer looks, a row for each image.

    Args:
      model, variables: a vision transformer, see `fmjax.nn.attention_maps`.
      pixel_values: f[B, H, W, C].
      images: the same as B images u8[·, ·, 3].
      layer, query: of `attention_maps`.
    """
    look = functools.partial(attention_maps, model, layer=layer, query=query)
    maps_BHhw = np.asarray(jax.jit(look)(variables, pixel_values))
    rows = []
    for image, heads in zip(images, maps_BHhw, strict=True):
        mean = report.Tile(report.heat(image, heads.mean(0)), "mean of the heads")
        each = [report.Tile(report.heat(image, m), f"head {n}") for n, m in enumerate(heads)]
        rows.append([report.Tile(image, "the image", "query"), mean, *each])
    who = "the mean of all tokens" if query is None else f"token {query}"
    which = "the last layer" if layer == -1 else f"layer {layer}"
    note = report.note(f"Attention of {who} in {which}; light is much, dark little.")
    return report.section("Where the heads look", note, report.sheet(rows))


def components_section(patches: Any, images: Sequence[Any], *, background: bool = False) -> str:
    """Three principal components of all patches as colours, beside the images.

    Args:
      patches: f[B, h, w, D], of the last layer.
      images: B images u8[·, ·, 3].
      background: see `fmjax.evals.patch_pca`.
    """
    found = patch_pca(patches, background=background)
    tiles = []
    for image, colours in zip(images, found.colours, strict=True):
        square = np.round(255 * colours).astype(np.uint8)
        scale = max(1, 224 // max(square.shape[:2]))
        large = square.repeat(scale, 0).repeat(scale, 1)
        tiles += [report.Tile(image, "the image"), report.Tile(large, "its patches")]
    shares = ", ".join(f"{share:.0%}" for share in found.explained)
    note = report.note(
        f"Like colours are like patches, over all images. The components hold {shares} of the "
        "variance."
    )
    return report.section("What the patches have in common", note, report.sheet([tiles]))


def reconstruction_section(found: Reconstruction) -> str:
    """What a masked autoencoder sees, predicts, and was shown, a row for each image."""
    names = ("seen by the model", "predicted", "put together", "the image")
    columns = (found.masked, found.predicted, found.pasted, found.original)
    rows = [
        [report.Tile(image, name) for image, name in zip(images, names, strict=True)]
        for images in zip(*columns, strict=True)
    ]
    return report.section("What is filled in", report.sheet(rows))


def reconstruction_grid(found: Reconstruction) -> np.ndarray:
    """u8[·, ·, 3]: the same as one image: masked, put together and original, side by side."""
    columns = (found.masked, found.pasted, found.original)
    return report.grid(list(zip(*columns, strict=True)))


def neighbours_section(
    queries: Sequence[Any],
    bank: Sequence[Any],
    found: Neighbours,
    query_labels: Sequence[int] | None = None,
    bank_labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> str:
    """Queries and their nearest images, a row for each query; those of other classes are faded.

    Args:
      queries: images u8[·, ·, 3] or [·, ·].
      bank: images that the neighbours are numbers of.
      found: of `fmjax.evals.nearest`.
      query_labels, bank_labels: class numbers; both or neither.
      names: of the classes; default their numbers.
    """
    labelled = query_labels is not None and bank_labels is not None

    def name(label: int) -> str:
        return str(label) if names is None else names[label]

    rows = []
    for q, (query, cosines, indices) in enumerate(zip(queries, *found, strict=True)):
        row = [report.Tile(query, name(query_labels[q]) if labelled else "", "query")]
        for cosine, i in zip(cosines, indices, strict=True):
            caption = f"{name(bank_labels[i])}\n{cosine:.3f}" if labelled else f"{cosine:.3f}"
            wrong = labelled and bank_labels[i] != query_labels[q]
            row.append(report.Tile(bank[i], caption, "wrong" if wrong else ""))
        rows.append(row)
    lead = "The first image of a row is the query; cosines stand under its neighbours."
    faded = " Those of another class are faded." if labelled else ""
    return report.section("Nearest neighbours", report.note(lead + faded), report.sheet(rows))
