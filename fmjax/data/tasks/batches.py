"""Batches of labelled examples, for training and for one pass of evaluation, over Grain.

Names as in `collate`; B = rows of a global batch, b = B / processes = rows of this process's share.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.loader import Batch, TextBatches, check_weights, derived_seed, process_share
from fmjax.data.tasks.collate import EVAL_LENGTH_BUCKETS, LENGTH_BUCKETS, Feature, FeatureTable

Transform = Callable[[Batch], Batch]


def _as_it_is(batch: Batch) -> Batch:
    return batch


class _Batches(grain.MapDataset):
    """Batch k: examples k·B … (k + 1)·B of the epochs laid end to end; this process's rows of it.

    A pure function of k, so that a run resumes anywhere. T follows the global batch: all processes
    have one shape, and the batches do not depend on how many processes there are.
    """

    def __init__(
        self,
        table: FeatureTable,
        order: Callable[[int], np.ndarray],
        epochs: int | None,
        batch_size: int,
        share: tuple[int, int],
        transform: Transform,
    ):
        super().__init__()
        self._transform = transform
        self._table, self._order, self._batch_size = table, order, batch_size
        self._total = sys.maxsize if epochs is None else epochs * len(table)
        process, processes = share
        self._local = batch_size // processes
        self._first = process * self._local

    def __len__(self) -> int:
        full, rest = divmod(self._total, self._batch_size)
        return full + (rest > 0 and self._total < sys.maxsize)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        start = index * self._batch_size
        stop = min(start + self._batch_size, self._total)
        n = len(self._table)
        places = [divmod(place, n) for place in range(start, stop)]
        examples = np.array([self._order(epoch)[place] for epoch, place in places])
        batch = self._table.collate(
            examples[self._first : self._first + self._local],
            length=self._table.padded_length(examples),
            rows=self._local,
            filler=examples[0],
        )
        return self._transform(batch)

    def read(self, prefetch: int) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
        return iter(self.to_iter_dataset(options))


def task_batches(
    features: Sequence[Feature],
    batch_size: int,
    *,
    pad_id: int,
    max_length: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    group_by_length: bool = False,
    epochs: int | None = None,
    length_buckets: Sequence[int] = LENGTH_BUCKETS,
    pad_multiple: int = 1,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
    transform: Transform = _as_it_is,
) -> TextBatches:
    """Training batches: every example once an epoch, in a new order each epoch.

    Epochs run on into one another, so that every batch is full; only the very last batch of a
    finite number of `epochs` may be filled up with rows of example_weight 0.

    Args:
      features: one dict an example. `input_ids` is a list of token ids, or a list of K such lists
        for an example of K texts; `token_type_ids`, and labels of their tokens, are its like. Of
        any other field a list of integers is one value a token, a list of floats is N values of
        the example, and a number is one value of the example.
      batch_size: B, rows of the global batch; each process gets its share.
      pad_id: fills `input_ids` on the right.
      max_length: the largest T; default is the longest example.
      seed: of the shuffle.
      shuffle: False keeps the order of `features`.
      group_by_length: puts examples of like lengths into a batch, which saves padding: each 50 · B
        of the shuffled examples are sorted by length, and the batches shuffled.
      epochs: passes over the data; None repeats for ever.
      length_buckets: values of T below `max_length`; each batch has the smallest that holds its
        longest row, so that few shapes are compiled.
      pad_multiple: rounds each T up, as a sharded sequence axis needs; may exceed `max_length`.
      process_index, process_count: default JAX's.
      prefetch: batches prepared ahead in background threads; 0 for none.
      transform: of each batch.

    Returns:
      An iterator with `get_state` and `set_state` over batches of `input_ids`, `attention_mask`
      and `token_type_ids` i32[b, T] or i32[b, K, T], `example_weight` f32[b], and the other fields
      as i32[b, T] (`labels` −100 on padding), f32[b, N], i32[b] or f32[b].

    Raises:
      DataError: features that do not fit each other or `max_length`, no features, or arguments
        that do not fit (says which).
    """
    check_weights(None, 1, epochs)
    share = process_share(batch_size, process_index, process_count)
    if prefetch < 0:
        raise DataError(f"prefetch={prefetch} must be 0 or more")
    if group_by_length and not shuffle:
        raise DataError("group_by_length=True changes the order; leave out shuffle=False")
    table = FeatureTable(
        features, pad_id=pad_id, max_length=max_length, length_buckets=length_buckets,
        pad_multiple=pad_multiple,
    )  # fmt: skip
    n = len(table)
    shuffle_seed = derived_seed(seed, "examples")

    # Two epochs are in flight where one ends.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        if not shuffle:
            return np.arange(n)
        # RandomState's streams are frozen by numpy, so that a resumed run sees the same order
        # after an upgrade.
        random = np.random.RandomState([shuffle_seed, epoch])
        examples = random.permutation(n)
        if group_by_length:
            begun = -epoch * n % batch_size  # rows that the last batch of the epoch before lacks
            examples[begun:] = _grouped(examples[begun:], table.lengths, batch_size, random)
        return examples

    settings = {
        "batch_size": batch_size, "seed": seed, "shuffle": shuffle,
        "group_by_length": group_by_length, "epochs": epochs, "length_buckets": table.buckets,
        "pad_id": pad_id, "examples": n, "checksum": table.checksum(),
    }  # fmt: skip
    batches = _Batches(table, order, epochs, batch_size, share, transform)
    return TextBatches(batches.read(prefetch), settings)


def _grouped(
    examples: np.ndarray, lengths: np.ndarray, batch_size: int, random: np.random.RandomState
) -> np.ndarray:
    """Examples with like lengths side by side in batches, which are in random order."""
    window = 50 * batch_size
    parts = [examples[i : i + window] for i in range(0, len(examples), window)]
    parts = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
    batches = [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]
    full = len(examples) // batch_size
    ordered = [*(batches[k] for k in random.permutation(full)), *batches[full:]]
    return np.concatenate(ordered) if ordered else examples


class EvalTaskBatches:
    """One pass over all examples; each `iter()` starts a new pass. `len()` is in batches.

    Attributes:
      order: i64[n], the example in each row of the batches laid end to end, without the filling.
      lengths: i64[n], tokens of each example's longest text.
    """

    def __init__(self, batches: _Batches, order: np.ndarray, lengths: np.ndarray, prefetch: int):
        self._batches, self._prefetch = batches, prefetch
        self.order, self.lengths = order, lengths

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches.read(self._prefetch)

    def in_order(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the model gave for each example, in the order of the features, filling left out.

        Args:
          outputs: of each batch in turn, an array [B, …] of the global batch. Trailing axes may
            differ between batches (T does).

        Returns:
          n arrays […]; a T axis keeps its padding, `lengths` says where it begins.

        Raises:
          DataError: another number of batches.
        """
        if len(outputs) != len(self):
            raise DataError(
                f"{len(outputs)} outputs for {len(self)} batches; give one for each, in order"
            )
        rows = [row for output in outputs for row in np.asarray(output)]
        result: list[np.ndarray] = [rows[0]] * len(self.order)
        for example, row in zip(self.order, rows, strict=False):  # the rest is filling
            result[example] = row
        return result


def eval_task_batches(
    features: Sequence[Feature],
    batch_size: int,
    *,
    pad_id: int,
    max_length: int | None = None,
    length_buckets: Sequence[int] = EVAL_LENGTH_BUCKETS,
    pad_multiple: int = 1,
    sort_by_length: bool = True,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
    transform: Transform = _as_it_is,
) -> EvalTaskBatches:
    """Evaluation batches: every example once.

    The last batch is filled up with rows of example_weight 0, so that every batch has B rows.
    Batches and the other arguments are as in `task_batches`.

    Args:
      sort_by_length: puts examples of like lengths, longest first, into a batch, which saves
        padding; `in_order` undoes it. False keeps the order of `features`.

    Raises:
      DataError: as `task_batches`.
    """
    share = process_share(batch_size, process_index, process_count)
    if prefetch < 0:
        raise DataError(f"prefetch={prefetch} must be 0 or more")
    table = FeatureTable(
        features, pad_id=pad_id, max_length=max_length, length_buckets=length_buckets,
        pad_multiple=pad_multiple,
    )  # fmt: skip
    order = np.arange(len(table))
    if sort_by_length:
        order = np.argsort(-table.lengths, kind="stable")
    batches = _Batches(table, lambda epoch: order, 1, batch_size, share, transform)
    return EvalTaskBatches(batches, order, table.lengths, prefetch)
