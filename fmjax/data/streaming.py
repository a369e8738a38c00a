"""Batches from a corpus too large to tokenise ahead.

Row j of every batch belongs to lane j: the documents that lane j is dealt, end to end, cut into
rows. Where a lane stands depends on its own documents alone and not on the process that reads it,
so a run goes on with any number of processes, each reading its own lanes' documents only (and, at
first, a sample of all, by which the data are known again).

Names: B = rows of a global batch = lanes, b = B / processes.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from fmjax.core.errors import DataError, FmjaxError
from fmjax.data.loader import derived_seed
from fmjax.data.packing import Row, make_row
from fmjax.data.sources import Source, text_of
from fmjax.data.tokenizer import Tokenizer
from fmjax.data.tokens import Marks
from fmjax.data.words import Words


class _Texts:
    """The texts of a source."""

    def __init__(self, source: Source, field: str):
        self._source, self._field = source, field

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> str:
        return text_of(self._source[int(index)], self._field, int(index))


def sample_checksum(source: Source, field: str, tokenizer: Tokenizer, count: int = 32) -> int:
    """Of the ids of some texts from all over a source that is too large to be read whole."""
    texts, total = _Texts(source, field), 0
    for i in np.unique(np.linspace(0, len(texts) - 1, count).round().astype(int)):
        try:
            ids = tokenizer.encode(texts[i], add_special_tokens=False)
        except FmjaxError:  # it is told when it is its turn
            continue
        total = zlib.crc32(np.array([*ids, -1], np.int32).tobytes(), total)
    return total


class _Deal:
    """Which document a lane gets in which round: each round deals the next B, one to a lane.

    Lanes change places from round to round, lest a mixture with a period of B documents gives each
    lane documents of one source only; not where the order is to be kept.
    """

    def __init__(self, lanes: int, seed: int | None):
        self._lanes, self._seed = lanes, seed
        self._places = functools.lru_cache(maxsize=256)(self._places)

    def _places(self, turn: int) -> np.ndarray:
        # RandomState's streams are frozen by numpy.
        return np.random.RandomState([self._seed, turn]).permutation(self._lanes)

    def __call__(self, lane: int, turn: int) -> int:
        place = lane if self._seed is None else int(self._places(turn)[lane])
        return turn * self._lanes + place


class _Lane:
    """Rows of one lane. Stands before token `offset` of the document of round `turn`."""

    def __init__(self, documents: grain.MapDataset, deal: _Deal, lane: int, length: int, pad: int):
        self._documents, self._deal, self._lane = documents, deal, lane
        self._length, self._pad = length, pad
        self.turn, self.offset = 0, 0
        self._tokens: np.ndarray | None = None

    def move(self, turn: int, offset: int) -> None:
        self.turn, self.offset, self._tokens = turn, offset, None

    def row(self) -> Row:
        pieces, free = [], self._length
        while free:
            if self._tokens is None:
                self._tokens = self._documents[self._deal(self._lane, self.turn)]
            piece = self._tokens[self.offset : self.offset + free]
            pieces.append(piece)
            free -= len(piece)
            self.offset += len(piece)
            if self.offset == len(self._tokens):
                self.move(self.turn + 1, 0)
        return make_row(pieces, self._length, self._pad)


class _LaneBatches(grain.IterDataset):
    """Batches of a process's lanes."""

    def __init__(self, make_lanes: Any, first: int, words: Words | None):
        super().__init__()
        self._make_lanes, self._first, self._words = make_lanes, first, words

    def __iter__(self) -> "_LaneIterator":
        return _LaneIterator(self._make_lanes(), self._first, self._words)


class _LaneIterator(grain.DatasetIterator):
    def __init__(self, lanes: list[_Lane], first: int, words: Words | None):
        super().__init__()
        self._lanes, self._first, self._words = lanes, first, words

    def __next__(self) -> Row:
        rows = [lane.row() for lane in self._lanes]
        if self._words is not None:
            rows = [self._words.add(row) for row in rows]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def get_state(self) -> dict[str, Any]:
        """{"first": number of the first lane, "lanes": [[turn, offset] of each]}."""
        return {
            "first": self._first,
            "lanes": [[lane.turn, lane.offset] for lane in self._lanes],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        try:
            skip = self._first - state["first"]
            places = state["lanes"][skip : skip + len(self._lanes)] if skip >= 0 else []
        except (KeyError, TypeError) as e:
            raise IndexError("the saved position is of an older stream, without lanes") from e
        if len(places) != len(self._lanes):
            raise IndexError(
                f"the saved position lacks rows {self._first} to "
                f"{self._first + len(self._lanes) - 1}; pass the joined states of all processes"
            )
        for lane, place in zip(self._lanes, places, strict=True):
            lane.move(*place)


def join(positions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One position of all lanes from those that the processes saved, each of its own lanes."""
    found: dict[int, list[int]] = {}
    for position in positions:
        found |= {position["first"] + i: place for i, place in enumerate(position["lanes"])}
    if sorted(found) != list(range(len(found))):
        raise DataError(
            "the saved data positions of some processes are missing; copy the whole checkpoint"
        )
    return {"first": 0, "lanes": [found[lane] for lane in range(len(found))]}


def stream(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_length: int,
    weights: Sequence[float] | None,
    seed: int,
    shuffle: bool,
    add_bos: bool,
    text_field: str,
    words: Words | None,
    share: tuple[int, int],
    prefetch: int,
) -> Any:
    """An endless, checkpointable iterator of batches; see `fmjax.data.text_batches`.

    Documents are shuffled, repeated and dealt out to the lanes; each process tokenises those of its
    own lanes. EOS ends every document, so that none is empty.
    """
    if any(len(source) == 0 for source in sources):
        raise DataError("an empty corpus: a source has no examples; check the source")
    if sequence_length < 1:
        raise DataError(f"sequence_length={sequence_length} must be at least 1")
    marks = Marks.of(tokenizer, add_bos, True)
    process, processes = share

    def encode(text: str) -> np.ndarray:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return np.array([*marks.bos, *ids, *marks.eos], np.int32)

    datasets = [grain.MapDataset.source(_Texts(source, text_field)) for source in sources]
    if weights is None and len(datasets) > 1:
        datasets = [grain.MapDataset.concatenate(datasets)]
    endless = []
    for i, dataset in enumerate(datasets):
        if shuffle:
            dataset = dataset.shuffle(seed=derived_seed(seed, "documents", i))
        endless.append(dataset.repeat())
    documents = endless[0] if weights is None else grain.MapDataset.mix(endless, list(weights))
    documents = documents.map(encode)
    keep_order = weights is None and not shuffle
    deal = _Deal(batch_size, None if keep_order else derived_seed(seed, "lanes"))
    own = batch_size // processes
    first = process * own

    def lanes() -> list[_Lane]:
        return [
            _Lane(documents, deal, lane, sequence_length, marks.pad)
            for lane in range(first, first + own)
        ]

    batches: grain.IterDataset = _LaneBatches(lanes, first, words)
    if prefetch:
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=prefetch
        )
    return iter(batches)
