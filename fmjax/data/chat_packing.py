"""Conversations packed into rows, for training on the answers in them.

Names as in `loader`; T = sequence_length.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.chat_tokens import Messages, encode_chats
from fmjax.data.loader import (
    EvalBatches,
    ProcessBatches,
    TextBatches,
    derived_seed,
    process_share,
    read_ahead,
)
from fmjax.data.packing import PackedDocuments, Row, make_row
from fmjax.data.tokens import TokenizedDocuments

IGNORED = -100  # the label of a token that is not learnt


@dataclasses.dataclass(frozen=True)
class ChatDocuments:
    """Conversations as token ids with a mask on the answers, none longer than `max_length`.

    Attributes:
      tokens: their ids.
      answers: 1 where a token is part of an answer, else 0; of the same lengths.
      kept: which of the conversations each is.
      truncated: how many of them were cut.
      lost: how many were left out because no token of an answer was left.
      max_length: tokens of a conversation at most.
    """

    tokens: TokenizedDocuments
    answers: TokenizedDocuments
    kept: tuple[int, ...]
    truncated: int
    lost: int
    max_length: int

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        cut = f"{self.truncated} cut at {self.max_length} tokens" if self.truncated else (
            f"none longer than {self.max_length} tokens"
        )  # fmt: skip
        lost = f"; {self.lost} left out, as no answer begins before" if self.lost else ""
        share = self.answers.tokens.sum() / len(self.tokens.tokens)
        return f"{len(self)} conversations, {cut}{lost}; {share:.0%} of the tokens are answers"


def chat_documents(
    conversations: Sequence[Messages], tokenizer: Any, max_length: int
) -> ChatDocuments:
    """Encodes conversations by the tokenizer's chat template.

    Args:
      conversations: `{"role", "content"}` in order, of each.
      tokenizer: see `encode_chats`.
      max_length: tokens beyond are cut off, at the end.

    Raises:
      TokenizerError: as `encode_chats`.
      DataError: no conversation has an answer within `max_length`, or it is below 1.
    """
    if max_length < 1:
        raise DataError(f"max_length={max_length} must be at least 1")
    encoded = encode_chats(tokenizer, conversations, max_length)
    kept = tuple(i for i, chat in enumerate(encoded) if any(chat.answers))
    if not kept:
        raise DataError(
            f"within {max_length} tokens none of {len(encoded)} conversations has a token of an "
            "answer; raise --max-length, or shorten the prompts"
        )
    lengths = [len(encoded[i].ids) for i in kept]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    tokens = np.concatenate([np.array(encoded[i].ids, dtype) for i in kept])
    answers = np.concatenate([np.array(encoded[i].answers, np.uint8) for i in kept])
    pad = tokenizer.pad_token_id or 0
    return ChatDocuments(
        TokenizedDocuments(tokens, offsets, pad),
        TokenizedDocuments(answers, offsets),
        kept,
        sum(encoded[i].truncated for i in kept),
        len(encoded) - len(kept),
        max_length,
    )


class _ChatRows(grain.MapDataset):
    """Packed conversations with labels; index `epoch · rows + row`."""

    def __init__(self, documents: ChatDocuments, sequence_length: int, **options: Any):
        super().__init__()
        if documents.max_length > sequence_length:
            raise DataError(
                f"conversations of up to {documents.max_length} tokens do not fit into rows of "
                f"{sequence_length}; encode them with max_length={sequence_length} or less"
            )
        # Packed alike, token by token, as a packing depends on nothing but lengths and seed.
        self._tokens, self._answers = (
            PackedDocuments(part, sequence_length, split_documents=False, **options)
            for part in (documents.tokens, documents.answers)
        )
        pads = documents.tokens.pad_id, documents.answers.pad_id
        self.empty = _with_labels(*(make_row([], sequence_length, pad) for pad in pads))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        place = divmod(index, len(self))
        return _with_labels(self._tokens.row(*place), self._answers.row(*place))


def _with_labels(row: Row, answers: Row) -> Row:
    ids = row["input_ids"]
    return {**row, "labels": np.where(answers["input_ids"] > 0, ids, IGNORED).astype(np.int32)}


def chat_batches(
    documents: ChatDocuments,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    pack: bool = True,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
) -> TextBatches:
    """Training batches: every conversation once an epoch, whole in one row.

    Args:
      documents: of `chat_documents`, with a max_length of T or less.
      batch_size: B, rows of the global batch; each process gets its share.
      sequence_length: T.
      seed: of the shuffle.
      shuffle: False keeps the order.
      epochs: passes over the data, the last batch filled up with padding; None repeats for ever.
      pack: several conversations in a row, which do not see each other; False gives each a row.
      process_index, process_count: default JAX's.
      prefetch: batches prepared ahead in background threads; 0 for none.

    Returns:
      An iterator with `get_state` and `set_state` over batches of input_ids, segment_ids,
      position_ids and labels (-100 but on answers), i32[B / processes, T].

    Raises:
      DataError: arguments that do not fit (says which).
    """
    if epochs is not None and epochs < 1:
        raise DataError(f"epochs={epochs} must be at least 1; None repeats without end")
    share = process_share(batch_size, process_index, process_count)
    rows = _ChatRows(
        documents, sequence_length, pack=pack, shuffle=shuffle,
        seed=derived_seed(seed, "conversations"),
    )  # fmt: skip
    batches = ProcessBatches(rows.repeat(epochs), rows.empty, batch_size, *share)
    checksum = 0
    for array in (documents.tokens.tokens, documents.answers.tokens, documents.tokens.offsets):
        checksum = zlib.crc32(array, checksum)
    settings = {
        "batch_size": batch_size, "sequence_length": sequence_length, "seed": seed,
        "shuffle": shuffle, "epochs": epochs, "pack": pack, "rows": len(rows),
        "checksum": checksum,
    }  # fmt: skip
    return TextBatches(read_ahead(batches, prefetch), settings, [documents.tokens])


def chat_eval_batches(
    documents: ChatDocuments,
    *,
    batch_size: int,
    sequence_length: int,
    pack: bool = True,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
) -> EvalBatches:
    """Evaluation batches: every conversation once, in order; arguments as in `chat_batches`.

    The last batch is filled up with rows of padding.
    """
    share = process_share(batch_size, process_index, process_count)
    rows = _ChatRows(documents, sequence_length, pack=pack)
    batches = ProcessBatches(rows, rows.empty, batch_size, *share)
    return EvalBatches(batches, len(documents.tokens.tokens), prefetch)
