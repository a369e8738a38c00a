"""Packing loses nothing, invents nothing and depends on nothing but its arguments."""

import numpy as np
import pytest

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data import PackedDocuments, TokenizedDocuments, tokenize
from fmjax.data.tokens import Marks, as_sources

T = 8


def corpus(lengths):
    """Documents whose tokens are all different, from 1 up."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenizedDocuments(np.arange(1, offsets[-1] + 1, dtype=np.uint16), offsets, pad_id=0)


LENGTHS = [3, 5, 1, 20, 8, 8, 2, 7, 16, 4]


def rows_of(packed, epoch=0):
    return [packed.row(epoch, i) for i in range(len(packed))]


def pieces_of(row):
    for segment in range(1, row["segment_ids"].max() + 1):
        where = np.flatnonzero(row["segment_ids"] == segment)
        assert len(where) and (np.diff(where) == 1).all()
        assert row["position_ids"][where].tolist() == list(range(len(where)))
        yield row["input_ids"][where]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_every_token_exactly_once(pack, split, shuffle):
    documents = corpus(LENGTHS)
    packed = PackedDocuments(
        documents, T, pack=pack, split_documents=split, shuffle=shuffle, seed=3
    )
    for epoch in (0, 1, 5):
        rows = rows_of(packed, epoch)
        pieces = [p for row in rows for p in pieces_of(row)]
        assert sorted(np.concatenate(pieces)) == documents.tokens.tolist()
        # A piece is a contiguous part of one document.
        for piece in pieces:
            i = np.searchsorted(documents.offsets, piece[0] - 1, side="right") - 1
            assert piece.tolist() == list(range(piece[0], piece[0] + len(piece)))
            assert piece[-1] <= documents.offsets[i + 1]
        for row in rows:
            assert all(row[k].shape == (T,) and row[k].dtype == np.int32 for k in row)
            padding = row["segment_ids"] == 0
            assert not row["input_ids"][padding].any() and not row["position_ids"][padding].any()
            if not pack:
                assert row["segment_ids"].max() == 1
        if pack and split:
            assert sum((row["segment_ids"] == 0).any() for row in rows) == bool(sum(LENGTHS) % T)
            assert len(rows) == -(-sum(LENGTHS) // T)
        if pack and not split:  # only what is longer than a row is cut, and only at row lengths
            assert len(pieces) == sum(-(-n // T) for n in LENGTHS)


def test_order_and_layout():
    row = rows_of(PackedDocuments(corpus([3, 5, 2]), 6))
    assert row[0]["input_ids"].tolist() == [1, 2, 3, 4, 5, 6]
    assert row[0]["segment_ids"].tolist() == [1, 1, 1, 2, 2, 2]
    assert row[1]["input_ids"].tolist() == [7, 8, 9, 10, 0, 0]
    assert row[1]["segment_ids"].tolist() == [1, 1, 2, 2, 0, 0]
    assert row[1]["position_ids"].tolist() == [0, 1, 0, 1, 0, 0]
    whole = rows_of(PackedDocuments(corpus([3, 5, 2]), 6, split_documents=False))
    assert [r["input_ids"].tolist() for r in whole] == [
        [1, 2, 3, 0, 0, 0],
        [4, 5, 6, 7, 8, 0],
        [9, 10, 0, 0, 0, 0],
    ]


def test_shuffle_is_seeded_and_changes_with_the_epoch():
    def ids(seed, epoch):
        packed = PackedDocuments(corpus(LENGTHS), T, shuffle=True, seed=seed)
        return np.stack([r["input_ids"] for r in rows_of(packed, epoch)])

    assert (ids(0, 1) == ids(0, 1)).all()
    assert (ids(0, 0) != ids(0, 1)).any() and (ids(0, 0) != ids(1, 0)).any()


def test_tokenize(tokenizer):
    texts = ["In the", "", "beginning"]
    documents = tokenize([texts, [{"text": "God"}]], tokenizer)
    assert len(documents) == 3 and documents.tokens.dtype == np.uint16
    for i, text in enumerate(["In the", "beginning", "God"]):
        assert documents[i].tolist() == [*tokenizer.encode(text), tokenizer.eos_token_id]
    bare = tokenize(texts, tokenizer, add_bos=False, add_eos=False)
    assert bare[0].tolist() == tokenizer.encode("In the", add_special_tokens=False)
    assert tokenize([{"body": "x"}], tokenizer, text_field="body")[0].size > 2


class Fake:
    """A tokenizer with chosen special ids and no batch method."""

    vocab_size = 70000

    def __init__(self, bos=None, eos=None, pad=None):
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos, eos, pad

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]


def test_marks():
    assert Marks.of(Fake(5, 6, 7)) == Marks((5,), (6,), 7)
    assert Marks.of(Fake(5, 5)) == Marks((), (5,), 0)  # GPT-2 has one token for both
    assert Marks.of(Fake(5, 5), add_eos=False) == Marks((5,), (), 0)
    assert Marks.of(Fake(None, 6)) == Marks((), (6,), 0)
    assert tokenize(["ab"], Fake(5, 6)).tokens.tolist() == [5, 97, 98, 6]
    assert tokenize(["ab"], Fake(5, 6)).tokens.dtype == np.uint32
    with pytest.raises(TokenizerError, match="has no EOS token.*add_eos=False"):
        tokenize(["ab"], Fake(5))


def test_bad_input(tokenizer):
    with pytest.raises(DataError, match="empty corpus: the source has no examples"):
        tokenize([], tokenizer)
    with pytest.raises(DataError, match="empty corpus: no document has any text"):
        tokenize(["", ""], tokenizer)
    with pytest.raises(DataError, match="a str is no source"):
        as_sources("file.txt")
    with pytest.raises(DataError, match="a int is no source"):
        as_sources(3)
    with pytest.raises(DataError, match="source 1 of 2 is a str"):
        as_sources([["x"], "file.txt"])
    with pytest.raises(DataError, match="source 0 of 1 is a int"):
        as_sources([3])
    with pytest.raises(DataError, match='example 0 has no text in field "text"'):
        tokenize([{"body": "x"}], tokenizer)
    with pytest.raises(DataError, match="sequence_length=0 must be at least 1"):
        PackedDocuments(corpus([3]), 0)
