"""Iterators over batches of pictures, and what they could not use."""

import concurrent.futures
import functools
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from fmjax.data.images.rows import Rows
from fmjax.data.images.sources import ANY_NAME, ImageSource
from fmjax.data.loader import Batch, TextBatches

Share = tuple[int, int]


@functools.cache
def _threads(workers: int) -> concurrent.futures.ThreadPoolExecutor:
    """Threads that all sets share, so that a process that opens many has no more of them.

    Pillow and the tokenizers work outside Python's lock: threads are enough.
    """
    return concurrent.futures.ThreadPoolExecutor(workers, "fmjax-images")


class RowBatches(grain.MapDataset):
    """Batch k: examples k·B … (k + 1)·B of the epochs laid end to end; this process's rows of it.

    A pure function of k, so that a run resumes anywhere, on any number of processes.
    """

    def __init__(
        self,
        rows: Rows,
        order: Callable[[int], np.ndarray],
        epochs: int | None,
        batch_size: int,
        share: Share,
        workers: int | None,
    ):
        super().__init__()
        self._rows, self._order, self._batch_size = rows, order, batch_size
        self._total = sys.maxsize if epochs is None else epochs * len(rows)
        process, processes = share
        self._local = batch_size // processes
        self._first = process * self._local
        self._pool = _threads(min(os.cpu_count() or 1, 16) if workers is None else workers)

    def __len__(self) -> int:
        full, rest = divmod(self._total, self._batch_size)
        return full + (rest > 0 and self._total < sys.maxsize)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        start = index * self._batch_size + self._first
        rows = list(self._pool.map(self._row, range(start, start + self._local)))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, place: int) -> Batch:
        if place >= self._total:
            return self._rows.empty
        epoch, at = divmod(place, len(self._rows))
        return self._rows.row(self._order(epoch), at, epoch)

    def read(self, prefetch: int) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
        return iter(self.to_iter_dataset(options))


class ImageBatches(TextBatches):
    """An iterator over batches that resumes exactly, as `TextBatches` does, and counts what it
    could not use (in this process, since it was made)."""

    def __init__(self, iterator: Any, settings: dict[str, Any], rows: Rows):
        super().__init__(iterator, settings)
        self._rows = rows

    @property
    def skipped(self) -> dict[str, int]:
        """Reason → how many examples were left out for it so far; each example counts once."""
        return self._rows.skipped

    def report(self) -> str:
        """One line on what was left out, with the first file for each reason; "" if nothing."""
        return self._rows.report()


class ImageEvalBatches:
    """One pass over all examples, in order; each `iter()` starts a new pass. `len()` is in batches.

    What cannot be used has example_weight 0 and zeros in its row, as the filling of the last batch
    has; row i of the batches laid end to end is example i all the same.
    """

    def __init__(self, batches: RowBatches, rows: Rows, prefetch: int):
        self._batches, self._rows, self._prefetch = batches, rows, prefetch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches.read(self._prefetch)

    skipped = ImageBatches.skipped
    report = ImageBatches.report


def checksum(source: ImageSource) -> int:
    """Of what its examples are called, in which order, and what is known of them: another set is
    not resumed by mistake."""
    total = zlib.crc32("\n".join(source.class_names).encode(errors=ANY_NAME))
    for i in range(len(source)):
        about = f"{source.group(i)}\n{source.facts(i)}\n"
        total = zlib.crc32(about.encode(errors=ANY_NAME), total)
    return total
