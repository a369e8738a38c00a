"""Batches for training and evaluation, over Grain.

A batch is a dict of i32[B, T] numpy arrays: `input_ids`, `segment_ids` (1 and up, 0 is padding)
and `position_ids` (from 0 in each segment).

Names: B = rows of a global batch, b = B / processes = rows of this process's share.
"""

import hashlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.packing import PackedDocuments, Row, make_row
from fmjax.data.sources import Source
from fmjax.data.tokenizer import Tokenizer
from fmjax.data.tokens import TokenizedDocuments, as_sources, tokenize
from fmjax.data.words import Words

Batch = dict[str, np.ndarray]


class PackedRows(grain.MapDataset):
    """`PackedDocuments` as a Grain dataset; index `epoch · rows + row`."""

    def __init__(self, packed: PackedDocuments):
        super().__init__()
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return self._packed.row(*divmod(index, len(self._packed)))


class ProcessBatches(grain.MapDataset):
    """Batch k of one process: its contiguous b of rows k·B … (k + 1)·B.

    The global batches do not depend on the number of processes, so that a run can resume on
    another number of hosts. Rows past the end are padding: every process has as many batches.
    """

    def __init__(
        self, rows: grain.MapDataset, empty: Row, batch_size: int, process: int, processes: int
    ):
        super().__init__(rows)
        self._empty = empty
        self._batch_size = batch_size
        self._local = batch_size // processes
        self._first = process * self._local

    def __len__(self) -> int:
        return min(-(-len(self._parent) // self._batch_size), sys.maxsize // self._batch_size)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        start = index * self._batch_size + self._first
        wanted = range(start, start + self._local)
        rows = [self._parent[i] for i in wanted if i < len(self._parent)]
        rows += [self._empty] * (self._local - len(rows))
        return {key: np.stack([row[key] for row in rows]) for key in self._empty}


class TextBatches(Iterator[Batch]):
    """An iterator over batches that resumes exactly, on any number of processes.

    `get_state()` is a small JSON-able dict that belongs in the checkpoint: the position, and the
    settings that the position is meaningless without, which `set_state` compares. A position does
    not depend on the process that reads; a stream's is of the process's own rows, and `join_states`
    puts together those of all processes.
    """

    def __init__(
        self,
        iterator: Any,
        settings: dict[str, Any],
        corpora: Sequence[TokenizedDocuments] = (),
    ):
        self._iterator = iterator
        self.settings = settings
        self._corpora = corpora

    def __iter__(self) -> "TextBatches":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position after the batches handed out so far; prefetched ones do not count."""
        return {"position": self._iterator.get_state(), "settings": self.settings}

    def join_states(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What `set_state` takes, from the states that all processes saved after one batch.

        Raises:
          DataError: states of some processes are missing.
        """
        from fmjax.data import streaming

        state, positions = states[0], [s["position"] for s in states]
        if not all(isinstance(p, dict) and "lanes" in p for p in positions):
            return state
        return {**state, "position": streaming.join(positions)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batches that `state` had handed out.

        Raises:
          DataError: the state is of other data or other settings; names them.
        """
        try:
            position, settings = state["position"], state["settings"]
        except (TypeError, KeyError) as e:
            raise DataError(
                "not the state of a text iterator; pass what get_state() returned"
            ) from e
        changed = [
            f"{key} was {settings.get(key)}, is {self.settings.get(key)}"
            for key in {**self.settings, **settings}
            if settings.get(key) != self.settings.get(key)
        ]
        if changed:
            raise DataError(
                f"cannot resume the data: {'; '.join(changed)}; restore these settings, or start "
                "the data anew without the saved state"
            )
        try:
            self._iterator.set_state(position)
        except IndexError as e:
            raise DataError(f"cannot resume the data: {e}") from e

    def token_counts(self, vocab_size: int) -> np.ndarray | None:
        """How often each id occurs in the corpus, i64[V]; None when streaming."""
        if not self._corpora:
            return None
        return sum(documents.counts(vocab_size) for documents in self._corpora)

    def close(self) -> None:
        """Ends the prefetching threads."""
        self._iterator.close()


def process_share(
    batch_size: int, process_index: int | None, process_count: int | None
) -> tuple[int, int]:
    """(index, count) of this process, by default JAX's.

    Raises:
      DataError: a batch size below 1, or one that does not divide by the processes.
    """
    if process_index is None or process_count is None:
        import jax

        process_index = jax.process_index() if process_index is None else process_index
        process_count = jax.process_count() if process_count is None else process_count
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size} must be at least 1")
    if not 0 <= process_index < process_count:
        raise DataError(
            f"process_index={process_index} is not one of process_count={process_count}"
        )
    if batch_size % process_count:
        raise DataError(
            f"batch_size={batch_size} (of all processes together) does not divide by "
            f"{process_count} processes; choose a multiple of {process_count}"
        )
    return process_index, process_count


def derived_seed(seed: int, *parts: Any) -> int:
    """A seed in [0, 2³²) of its own for each part of a pipeline."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


def check_weights(weights: Sequence[float] | None, sources: int, epochs: int | None) -> None:
    """Raises DataError unless `weights` can mix this many sources."""
    if epochs is not None and epochs < 1:
        raise DataError(f"epochs={epochs} must be at least 1; None repeats without end")
    if weights is None:
        return
    if len(weights) != sources:
        raise DataError(f"{len(weights)} weights for {sources} sources; give one a source")
    if not all(0 < w < float("inf") for w in weights):
        raise DataError(f"weights={list(weights)} must be positive; leave out unwanted sources")
    if epochs is not None:
        raise DataError(
            "a weighted mixture has no epochs, as its sources end at different times; leave out "
            "epochs and stop by steps, or leave out weights"
        )


def text_batches(
    sources: Source | Sequence[Source],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_length: int,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    pack: bool = True,
    split_documents: bool = True,
    add_bos: bool = True,
    add_eos: bool = True,
    text_field: str = "text",
    words: Words | None = None,
    streaming: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
) -> TextBatches:
    """Training batches from text.

    The corpus is tokenised once, here, and kept in memory at 2 or 4 bytes a token; documents and
    rows are shuffled anew each epoch. With `streaming=True` documents are tokenised as they are
    read instead, for corpora too large for that.

    Args:
      sources: a source (list of texts, TextSource, JsonlSource, TfdsSource, …) or a list of them.
      tokenizer: encodes documents, without its own special tokens.
      batch_size: B, rows of the global batch; each process gets its share.
      sequence_length: T.
      weights: share of rows from each source (of documents, when streaming); default is all
        documents of all sources, alike.
      seed: of every shuffle.
      shuffle: False keeps the order of the sources.
      epochs: passes over the data, the last batch filled up with padding; None repeats for ever.
      pack, split_documents: how documents fill rows, see `PackedDocuments`.
      add_bos, add_eos: marks around each document, see `Marks.of`.
      text_field: where an example that is a dict has its text.
      words: adds `word_ids` to the batches, for masking whole words.
      streaming: see above; repeats for ever, packs with cut documents and ends documents with EOS.
        Each row of a batch goes on where it ended in the batch before.
      process_index, process_count: default JAX's.
      prefetch: batches prepared ahead in background threads; 0 for none.

    Returns:
      An iterator of batches of i32[B / processes, T] with `get_state` and `set_state`.

    Raises:
      DataError: an empty corpus, or arguments that do not fit each other (says which).
      TokenizerError: EOS is wanted and the tokenizer has none.
    """
    sources = as_sources(sources)
    check_weights(weights, len(sources), epochs)
    share = process_share(batch_size, process_index, process_count)
    if prefetch < 0:
        raise DataError(f"prefetch={prefetch} must be 0 or more")
    settings = {
        "batch_size": batch_size, "sequence_length": sequence_length, "seed": seed,
        "shuffle": shuffle, "epochs": epochs, "pack": pack, "split_documents": split_documents,
        "add_bos": add_bos, "add_eos": add_eos, "streaming": streaming,
        "weights": None if weights is None else [float(w) for w in weights],
    }  # fmt: skip
    if streaming:
        from fmjax.data import streaming as lazily

        if epochs is not None or not (pack and split_documents and add_eos):
            raise DataError(
                "streaming=True repeats for ever and packs cut documents that end with EOS; leave "
                "out epochs, pack, split_documents and add_eos, or leave out streaming"
            )
        iterator = lazily.stream(
            sources, tokenizer, batch_size=batch_size, sequence_length=sequence_length,
            weights=weights, seed=seed, shuffle=shuffle, add_bos=add_bos, text_field=text_field,
            words=words, share=share, prefetch=prefetch,
        )  # fmt: skip
        settings["documents"] = [len(source) for source in sources]
        settings["samples"] = [lazily.sample_checksum(s, text_field, tokenizer) for s in sources]
        return TextBatches(iterator, settings)

    marks = {"add_bos": add_bos, "add_eos": add_eos, "text_field": text_field}
    groups = [sources] if weights is None else [[source] for source in sources]
    rows, corpora = [], []
    for i, group in enumerate(groups):
        documents = tokenize(group, tokenizer, **marks)
        packed = PackedDocuments(
            documents, sequence_length, pack=pack, split_documents=split_documents,
            shuffle=shuffle, seed=derived_seed(seed, "documents", i),
        )  # fmt: skip
        rows.append(PackedRows(packed).repeat(epochs))
        corpora.append(documents)
    mixed = rows[0] if weights is None else grain.MapDataset.mix(rows, list(weights))
    empty = make_row([], sequence_length, corpora[0].pad_id)
    batches = ProcessBatches(*_with_words(mixed, empty, words), batch_size, *share)
    settings["tokens"] = [len(documents.tokens) for documents in corpora]
    settings["checksums"] = [
        zlib.crc32(documents.offsets, zlib.crc32(documents.tokens)) for documents in corpora
    ]
    return TextBatches(read_ahead(batches, prefetch), settings, corpora)


def _with_words(
    rows: grain.MapDataset, empty: Row, words: Words | None
) -> tuple[grain.MapDataset, Row]:
    return (rows, empty) if words is None else (rows.map(words.add), words.add(empty))


def read_ahead(batches: grain.MapDataset, prefetch: int) -> Any:
    """An iterator over batches that prepares some ahead in background threads."""
    options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))


class EvalBatches:
    """One pass over a corpus, in order; each `iter()` starts a new pass. `len()` is in batches."""

    def __init__(self, batches: ProcessBatches, tokens: int, prefetch: int):
        self._batches, self._prefetch = batches, prefetch
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return read_ahead(self._batches, self._prefetch)


def eval_batches(
    sources: Source | Sequence[Source],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_length: int,
    pack: bool = True,
    split_documents: bool = True,
    add_bos: bool = True,
    add_eos: bool = True,
    text_field: str = "text",
    words: Words | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
) -> EvalBatches:
    """Evaluation batches from text: every token once, in order.

    The last batch is filled up with rows of padding (segment_ids 0), so that all batches have one
    shape and all processes as many. Arguments and errors as in `text_batches`.
    """
    share = process_share(batch_size, process_index, process_count)
    documents = tokenize(
        as_sources(sources), tokenizer, add_bos=add_bos, add_eos=add_eos, text_field=text_field
    )
    packed = PackedDocuments(documents, sequence_length, pack=pack, split_documents=split_documents)
    empty = make_row([], sequence_length, documents.pad_id)
    rows = _with_words(PackedRows(packed), empty, words)
    batches = ProcessBatches(*rows, batch_size, *share)
    return EvalBatches(batches, len(documents.tokens), prefetch)
