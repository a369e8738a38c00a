"""Documents into rows of one length.

Which tokens a row holds is a pure function of (documents, options, seed, epoch, row), so that a
run resumes at any row, on any number of processes, without replaying what came before.

Shapes: T = sequence_length.
"""

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.tokens import TokenizedDocuments

Row = dict[str, np.ndarray]  # input_ids, segment_ids, position_ids: i32[T]


def make_row(pieces: Iterable[np.ndarray], sequence_length: int, pad_id: int) -> Row:
    """One row from its pieces: segments count from 1, positions restart at 0 in each piece."""
    ids = np.full(sequence_length, pad_id, np.int32)
    segments = np.zeros(sequence_length, np.int32)
    positions = np.zeros(sequence_length, np.int32)
    start = 0
    for segment, piece in enumerate(pieces, 1):
        stop = start + len(piece)
        ids[start:stop] = piece
        segments[start:stop] = segment
        positions[start:stop] = np.arange(len(piece), dtype=np.int32)
        start = stop
    return {"input_ids": ids, "segment_ids": segments, "position_ids": positions}


class PackedDocuments:
    """Rows of a tokenised corpus. In an epoch every token appears in exactly one row, once.

    Args:
      documents: the corpus.
      sequence_length: T.
      pack: True puts several documents into a row; False gives each document rows of its own.
      split_documents: with `pack`, True cuts documents where a row is full, so that only the last
        row has padding; False starts a document in the next row if it does not fit in this one.
        A document longer than T is always cut into pieces of T. Each piece is a segment.
      shuffle: a new order of rows each epoch, and a new order of documents where they are cut
        (otherwise they are packed once, in a shuffled order); False keeps the corpus's order.
      seed: of the shuffle, in [0, 2³²).

    Raises:
      DataError: sequence_length below 1.
    """

    def __init__(
        self,
        documents: TokenizedDocuments,
        sequence_length: int,
        *,
        pack: bool = True,
        split_documents: bool = True,
        shuffle: bool = False,
        seed: int = 0,
    ):
        if sequence_length < 1:
            raise DataError(f"sequence_length={sequence_length} must be at least 1")
        self.documents = documents
        self.sequence_length = sequence_length
        self._shuffle, self._seed = shuffle, seed
        self._cut = pack and split_documents
        # Two epochs are in flight where one ends and prefetching has begun the next.
        self._epoch = functools.lru_cache(maxsize=2)(self._epoch)
        self._order, self._starts = self._arrange(0)
        if self._cut:
            self._rows = -(-len(documents.tokens) // sequence_length)
        else:
            self._bins = _bins(documents.lengths[self._order], sequence_length, pack)
            self._rows = len(self._bins)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return self._rows

    def _permutation(self, n: int, *key: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(n)
        # RandomState's streams are frozen by numpy, so that a resumed run sees the same order
        # after an upgrade.
        return np.random.RandomState([self._seed, *key]).permutation(n)

    def _arrange(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents in order [n], and where each starts when they stand end to end [n + 1]."""
        order = self._permutation(len(self.documents), epoch, 0)
        return order, np.concatenate([[0], np.cumsum(self.documents.lengths[order])])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`_arrange` of this epoch, and its order of rows."""
        rows = self._permutation(self._rows, epoch, 1)
        return (*(self._arrange(epoch) if self._cut else (self._order, self._starts)), rows)

    def row(self, epoch: int, index: int) -> Row:
        """Row `index` of an epoch."""
        order, starts, rows = self._epoch(epoch)
        index = int(rows[index])
        if self._cut:
            begin = index * self.sequence_length
            end = min(begin + self.sequence_length, int(starts[-1]))
            first = int(np.searchsorted(starts, begin, side="right")) - 1
            last = int(np.searchsorted(starts, end, side="left"))
            pieces = [
                self.documents[order[i]][max(begin - starts[i], 0) : end - starts[i]]
                for i in range(first, last)
            ]
        else:
            pieces = [self.documents[order[i]][a:b] for i, a, b in self._bins[index]]
        return make_row(pieces, self.sequence_length, self.documents.pad_id)


def _bins(lengths: Sequence[int], room: int, pack: bool) -> list[list[tuple[int, int, int]]]:
    """Greedy sequential bins of (document, from, to), none over `room` tokens."""
    bins: list[list[tuple[int, int, int]]] = []
    free = 0
    for i, length in enumerate(map(int, lengths)):
        for start in range(0, length, room):
            stop = min(start + room, length)
            if not pack or stop - start > free:
                bins.append([])
                free = room
            bins[-1].append((i, start, stop))
            free -= stop - start
    return bins
