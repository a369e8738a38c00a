"""Batches of pictures, with labels or captions, for training and for one pass of evaluation.

A batch is a dict of numpy arrays; pictures are scaled down until their longer side is at most S and
stand at the top left of a square of zeros, so that all batches have one shape and the step can
crop, resize and augment them on the device:

  image u8[b, S, S, 3] · image_size i32[b, 2] (height, width) · example_weight f32[b]
  labels i32[b] · input_ids i32[b, T] · attention_mask i32[b, T]

Names: B = rows of a global batch, b = B / processes, S = image_size, T = captions.max_length.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.images.decode import MAX_PIXELS, WHITE
from fmjax.data.images.iterate import (
    ImageBatches,
    ImageEvalBatches,
    RowBatches,
    Share,
    checksum,
)
from fmjax.data.images.rows import Captions, Rows
from fmjax.data.images.sources import Concatenated, Examples, ImageSource
from fmjax.data.loader import check_weights, derived_seed, process_share
from fmjax.data.tokenizer_base import vocabulary_checksum

Sources = ImageSource | Sequence[Any]


def as_images(sources: Sources) -> ImageSource:
    """One source of an `ImageSource`, a list of them, or a list of examples or pictures."""
    if isinstance(sources, ImageSource):
        return sources
    sources = list(sources)
    if sources and all(isinstance(source, ImageSource) for source in sources):
        return sources[0] if len(sources) == 1 else Concatenated(sources)
    if any(isinstance(source, ImageSource) for source in sources):
        raise DataError("a list of both image sources and examples; give one kind")
    return Examples(sources)


def _has_labels(source: ImageSource, captions: Captions | None, wanted: bool | None) -> bool:
    return bool(source.class_names) and captions is None if wanted is None else wanted


def _share(
    batch_size: int, workers: int | None, prefetch: int, process: int | None, count: int | None
) -> Share:
    """(index, count) of this process, once the arguments are checked."""
    if prefetch < 0:
        raise DataError(f"prefetch={prefetch} must be 0 or more")
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers} must be at least 1")
    return process_share(batch_size, process, count)


def image_batches(
    sources: Sources,
    *,
    batch_size: int,
    image_size: int,
    captions: Captions | None = None,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    labels: bool | None = None,
    on_bad: str = "skip",
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = WHITE,
    process_index: int | None = None,
    process_count: int | None = None,
    workers: int | None = None,
    prefetch: int = 4,
) -> ImageBatches:
    """Training batches of pictures: every example once an epoch, in a new order each epoch.

    Epochs run on into one another, so that every batch is full; only the very last of a finite
    number of `epochs` may be filled up with rows of example_weight 0, which losses leave out and
    batch normalisation counts.

    Args:
      sources: an `ImageSource`, a list of them, or a list of examples or pictures.
      batch_size: B, rows of the global batch; each process gets its share.
      image_size: S, in pixels. Larger than what the model sees, where crops are to be zoomed.
      captions: how captions become `input_ids` and `attention_mask`; None leaves them out.
      seed: of the shuffle, and of the choice of a caption, anew each epoch, where an example has
        several that can be used.
      shuffle: False keeps the order of the sources.
      epochs: passes over the data; None repeats for ever.
      labels: whether batches have `labels`; by default they do if the source has classes and no
        captions are read.
      on_bad: what a picture that cannot be decoded, is too large or lacks its label or any caption
        that can be used brings about. "skip": another example takes its place, always the same one,
        and it is counted by reason. "error": a DataError with its name.
      max_pixels, background: see `decode_image`.
      process_index, process_count: default JAX's.
      workers: threads that decode; default the processor's cores, at most 16.
      prefetch: batches prepared ahead in the background; 0 for none.

    Returns:
      An iterator with `get_state`, `set_state`, `skipped` and `report()`.

    Raises:
      DataError: no examples, or arguments that do not fit (says which). While reading: as `on_bad`
        says; no example can be used; or more examples cannot be used than can, of 100 or more.
    """
    check_weights(None, 1, epochs)
    share = _share(batch_size, workers, prefetch, process_index, process_count)
    source = as_images(sources)
    labels = _has_labels(source, captions, labels)
    rows = Rows(
        source, image_size, labels=labels, captions=captions, on_bad=on_bad, max_pixels=max_pixels,
        background=background, replace=True, seed=seed,
    )  # fmt: skip
    n, shuffle_seed = len(source), derived_seed(seed, "images")

    # Two epochs are in flight where one ends.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        # RandomState's streams are frozen by numpy, so that a resumed run sees the same order
        # after an upgrade.
        return (
            np.random.RandomState([shuffle_seed, epoch]).permutation(n) if shuffle else np.arange(n)
        )

    settings = {
        "batch_size": batch_size, "image_size": image_size, "seed": seed, "shuffle": shuffle,
        "epochs": epochs, "labels": labels, "background": list(background),
        "max_length": None if captions is None else captions.max_length,
        "vocabulary": None if captions is None else vocabulary_checksum(captions.tokenizer),
        "examples": n, "checksum": checksum(source),
    }  # fmt: skip
    batches = RowBatches(rows, order, epochs, batch_size, share, workers)
    return ImageBatches(batches.read(prefetch), settings, rows)


def image_eval_batches(
    sources: Sources,
    *,
    batch_size: int,
    image_size: int,
    captions: Captions | None = None,
    labels: bool | None = None,
    on_bad: str = "skip",
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = WHITE,
    process_index: int | None = None,
    process_count: int | None = None,
    workers: int | None = None,
    prefetch: int = 4,
) -> ImageEvalBatches:
    """Evaluation batches: every example once, in order, with its first caption that can be used.

    Arguments and errors as in `image_batches`, rows as in `ImageEvalBatches`.
    """
    share = _share(batch_size, workers, prefetch, process_index, process_count)
    source = as_images(sources)
    labels = _has_labels(source, captions, labels)
    rows = Rows(
        source, image_size, labels=labels, captions=captions, on_bad=on_bad, max_pixels=max_pixels,
        background=background, replace=False, seed=None,
    )  # fmt: skip
    order = np.arange(len(source))
    batches = RowBatches(rows, lambda epoch: order, 1, batch_size, share, workers)
    return ImageEvalBatches(batches, rows, prefetch)
