"""Batches from a corpus too large to tokenise ahead: a Grain pipeline that packs as it reads."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.loader import derived_seed
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


class _Resumable:
    """Grain's packing compares the slices in its state with tuples, which JSON makes lists."""

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator
        self.get_state, self.close = iterator.get_state, iterator.close

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def set_state(self, state: dict[str, Any]) -> None:
        slices = {k: tuple(v) for k, v in state["remainder_slices"].items()}
        self._iterator.set_state({**state, "remainder_slices": slices})


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

    Documents are shuffled, repeated and dealt out to the processes, then each process tokenises
    its own and cuts them into rows. EOS ends every document, so that none is empty.
    """
    if any(len(source) == 0 for source in sources):
        raise DataError("an empty corpus: a source has no examples; check the source")
    if sequence_length < 1:
        raise DataError(f"sequence_length={sequence_length} must be at least 1")
    marks = Marks.of(tokenizer, add_bos, True)
    process, processes = share

    def encode(text: str) -> dict[str, np.ndarray]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return {"input_ids": np.array([*marks.bos, *ids, *marks.eos], np.int32)}

    def finish(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        row = {
            "input_ids": row["input_ids"],
            "segment_ids": row["input_ids_segment_ids"],
            "position_ids": row["input_ids_positions"],
        }
        return row if words is None else words.add(row)

    datasets = [grain.MapDataset.source(_Texts(source, text_field)) for source in sources]
    if weights is None and len(datasets) > 1:
        datasets = [grain.MapDataset.concatenate(datasets)]
    endless = []
    for i, dataset in enumerate(datasets):
        if shuffle:
            dataset = dataset.shuffle(seed=derived_seed(seed, "documents", i))
        endless.append(dataset.repeat())
    documents = endless[0] if weights is None else grain.MapDataset.mix(endless, list(weights))
    read_ahead = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=16 * prefetch)
    rows = grain.experimental.ConcatThenSplitIterDataset(
        documents[process::processes].map(encode).to_iter_dataset(read_ahead),
        length_struct={"input_ids": sequence_length},
    )
    batches = rows.map(finish).batch(batch_size // processes, drop_remainder=True)
    return _Resumable(iter(batches))
