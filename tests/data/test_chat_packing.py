"""Conversations packed into rows, with labels on the answers."""

import json

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data import chat_batches, chat_documents, chat_eval_batches, use_default_template

ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TALK = [
    {"role": "system", "content": "Answer from the book."},
    {"role": "user", "content": "Who begat Isaac?"},
    {"role": "assistant", "content": "Abraham begat Isaac."},
    {"role": "user", "content": "And Jacob?"},
    {"role": "assistant", "content": "Isaac begat Jacob."},
]


@pytest.fixture
def documents(plain, texts):
    use_default_template(plain)
    words = texts[0].split()
    talks = [
        [
            {"role": "user", "content": " ".join(words[i : i + 2])},
            {"role": "assistant", "content": " ".join(words[i + 2 : i + 4 + i % 3])},
        ]
        for i in range(40)
    ]
    return chat_documents(talks, plain, 48)


def test_packed_conversations_are_whole_and_apart(documents):
    batches = chat_batches(documents, batch_size=2, sequence_length=64, epochs=1, prefetch=0)
    seen = []
    for batch in batches:
        assert {k: x.shape for k, x in batch.items()} == dict.fromkeys(
            ("input_ids", "segment_ids", "position_ids", "labels"), (2, 64)
        )
        for ids, segments, positions, labels in zip(*batch.values(), strict=True):
            for segment in range(1, segments.max() + 1):
                part = segments == segment
                np.testing.assert_array_equal(positions[part], np.arange(part.sum()))
                answers = labels[part] != -100
                np.testing.assert_array_equal(labels[part][answers], ids[part][answers])
                seen.append((tuple(ids[part]), tuple(answers)))
            assert (labels[segments == 0] == -100).all()
    expected = [
        (tuple(documents.tokens[i]), tuple(documents.answers[i] > 0)) for i in range(len(documents))
    ]
    assert sorted(seen) == sorted(expected) and seen != expected
    assert max(np.max(b["segment_ids"]) for b in chat_eval_batches(
        documents, batch_size=2, sequence_length=64)) > 1  # fmt: skip


def test_packed_batches_resume(documents):
    options = {"batch_size": 2, "sequence_length": 64, "seed": 3}
    first = chat_batches(documents, **options)
    for _ in range(11):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    wanted = [next(first) for _ in range(12)]  # into the next epoch
    second = chat_batches(documents, **options)
    second.set_state(state)
    for batch in wanted:
        again = next(second)
        assert all((again[k] == batch[k]).all() for k in batch)
    other = chat_batches(documents, **options | {"seed": 4})
    with pytest.raises(DataError, match="seed was 3, is 4"):
        other.set_state(state)


def test_conversations_beyond_the_length(plain):
    use_default_template(plain)
    long = [{"role": "user", "content": "in the beginning " * 40}, ASKED[1]]
    found = chat_documents([long, TALK, ASKED], plain, 70)
    assert (found.kept, found.truncated, found.lost) == ((1, 2), 1, 1)
    assert "2 conversations, 1 cut at 70 tokens; 1 left out, as no answer begins" in str(found)
    with pytest.raises(DataError, match="within 70 tokens none of 1 conversations.*raise"):
        chat_documents([long], plain, 70)
    with pytest.raises(DataError, match="do not fit into rows of 32; encode them with max_length"):
        chat_batches(found, batch_size=1, sequence_length=32)
