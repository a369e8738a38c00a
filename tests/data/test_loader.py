"""Batches: exact resumption, process shares, mixtures, ends of epochs."""

import itertools
import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.core.errors import DataError
from fmjax.data import (
    DevicePrefetch,
    TextBatches,
    eval_batches,
    text_batches,
    tokenize,
    train_sentencepiece,
)

B, T = 4, 32


@pytest.fixture(scope="module")
def docs(texts):
    """Documents of very different lengths, all different."""
    words = " ".join(texts).split()
    cuts = [0, 3, 40, 41, 200, 210, 215, 400, 405]
    return [" ".join(words[a:b]) for a, b in itertools.pairwise(cuts)]


def take(batches, n):
    return list(itertools.islice(batches, n))


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys() == {"input_ids", "segment_ids", "position_ids"}
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


OPTIONS = [
    {},
    {"shuffle": False, "prefetch": 0},
    {"pack": False},
    {"split_documents": False},
    {"epochs": 3},
    {"weights": [2, 1]},
    {"streaming": True},
    {"streaming": True, "weights": [2, 1], "prefetch": 0},
]


def make(docs, tokenizer, **options):
    sources = [docs[:5], docs[5:]]
    return text_batches(
        sources, tokenizer, **{"batch_size": B, "sequence_length": T, "seed": 7} | options
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_resumes_exactly(docs, tokenizer, options):
    whole = take(make(docs, tokenizer, **options), 17)
    for stop in (0, 1, 5, 12):
        first = make(docs, tokenizer, **options)
        same(take(first, stop), whole[:stop])
        state = json.loads(json.dumps(first.get_state()))
        next(first)  # what happens after the state was taken does not matter
        second = make(docs, tokenizer, **options)
        take(second, 2)
        second.set_state(state)
        same(take(second, 17 - stop), whole[stop:])
        first.set_state(state)  # and an iterator can go back
        same(take(first, 1), whole[stop : stop + 1])
    for batch in whole:
        assert all(v.shape == (B, T) and v.dtype == np.int32 for v in batch.values())


@pytest.mark.parametrize("options", OPTIONS[:6], ids=str)
def test_processes_share_the_same_global_batch(docs, tokenizer, options):
    """The rows of all processes, in order, are the batch of a single process."""
    single = take(make(docs, tokenizer, **options), 9)
    parts = [
        take(make(docs, tokenizer, process_index=p, process_count=4, **options), 9)
        for p in range(4)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    same(joined, single)
    # So that a run can go on with another number of processes.
    state = make(docs, tokenizer, **options).get_state()
    state["position"] = {"next_index": 4}
    one = make(docs, tokenizer, process_index=1, process_count=2, **options)
    one.set_state(state)
    np.testing.assert_array_equal(next(one)["input_ids"], single[4]["input_ids"][2:])


STREAMS = [{}, {"shuffle": False}, {"weights": [2, 1]}]


@pytest.mark.parametrize("options", STREAMS, ids=str)
def test_a_stream_goes_on_on_another_number_of_processes(docs, tokenizer, options):
    """Batch k holds the same rows whoever reads them and however often the number changes."""
    options = {"streaming": True} | options
    whole = take(make(docs, tokenizer, **options), 12)
    states, done = None, 0
    for processes, steps in ((1, 2), (4, 3), (2, 3), (4, 1), (1, 3)):
        parts = [
            make(docs, tokenizer, process_index=p, process_count=processes, **options)
            for p in range(processes)
        ]
        if states:
            for part in parts:
                part.set_state(part.join_states(states))
        read = [take(part, steps) for part in parts]
        joined = [
            {key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
            for step in zip(*read, strict=True)
        ]
        same(joined, whole[done : done + steps])
        states = [json.loads(json.dumps(part.get_state())) for part in parts]
        done += steps


def test_a_process_reads_the_documents_of_its_own_rows_only(tokenizer):
    class Counted(list):
        read = set()

        def __getitem__(self, index):
            Counted.read.add(index)
            return super().__getitem__(index)

    docs = Counted([f"number {i} of the documents" for i in range(400)])
    seen = []
    for process in range(2):
        Counted.read = set()
        options = {"process_index": process, "process_count": 2, "prefetch": 0}
        batches = text_batches([docs], tokenizer, batch_size=4, sequence_length=8, streaming=True,
                               **options)  # fmt: skip
        assert len(Counted.read) <= 32  # a sample, by which the data are known again
        Counted.read = set()
        take(batches, 10)
        seen.append(Counted.read)
    assert min(map(len, seen)) > 5 and not seen[0] & seen[1]


def test_the_lanes_of_a_stream_all_see_the_mixture(tokenizer):
    """Two sources, one document each in turn, and an even number of rows."""
    batches = text_batches(
        [["a a a a"] * 50, ["b b b b"] * 50], tokenizer, batch_size=2, sequence_length=64,
        weights=[1, 1], streaming=True,
    )  # fmt: skip
    rows = np.concatenate([b["input_ids"] for b in take(batches, 8)], axis=1)
    for row in rows:
        text = tokenizer.decode([i for i in row.tolist() if i > 2])
        assert text.count("a") > 20 and text.count("b") > 20


def tokens_in(batches):
    return np.sort(np.concatenate([b["input_ids"][b["segment_ids"] > 0].ravel() for b in batches]))


@pytest.mark.parametrize("options", [{}, {"pack": False}, {"split_documents": False}], ids=str)
@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_hold_every_token(docs, tokenizer, options, epochs):
    batches = list(make(docs, tokenizer, epochs=epochs, **options))
    everything = np.sort(np.tile(tokenize(docs, tokenizer).tokens, epochs))
    np.testing.assert_array_equal(tokens_in(batches), everything)
    assert all(b["input_ids"].shape == (B, T) for b in batches)


def test_streaming_without_shuffle_is_the_corpus_in_order(docs, tokenizer):
    batches = make(docs, tokenizer, streaming=True, shuffle=False, batch_size=1)
    in_memory = make(docs, tokenizer, shuffle=False, batch_size=1)
    full = len(tokenize(docs, tokenizer).tokens) // T
    same(take(batches, full), take(in_memory, full))
    lanes = take(make(docs, tokenizer, streaming=True, shuffle=False), 3)
    for lane in range(B):
        ids = np.concatenate([batch["input_ids"][lane] for batch in lanes])
        own = tokenize(docs[lane::B] * 9, tokenizer).tokens
        assert ids.tolist() == own[: len(ids)].tolist()


def test_reshuffled_each_epoch_and_seeded(docs, tokenizer):
    options = {"batch_size": 1, "pack": False}
    per_epoch = len(list(make(docs, tokenizer, epochs=1, **options)))
    two = take(make(docs, tokenizer, **options), 2 * per_epoch)
    np.testing.assert_array_equal(tokens_in(two[:per_epoch]), tokens_in(two[per_epoch:]))

    def ids(batches):
        return np.stack([b["input_ids"] for b in batches])

    assert (ids(two[:per_epoch]) != ids(two[per_epoch:])).any()
    other = take(make(docs, tokenizer, **options | {"seed": 8}), per_epoch)
    assert (ids(other) != ids(two[:per_epoch])).any()
    plain = take(make(docs, tokenizer, **options, shuffle=False), 2 * per_epoch)
    same(plain[:per_epoch], plain[per_epoch:])


@pytest.mark.parametrize("streaming", [False, True])
def test_weights_are_respected(tokenizer, streaming):
    """Two sources of single-token documents, 3 to 1."""
    a, b = (tokenizer.encode(w, add_special_tokens=False) for w in ("God", "the"))
    sources = [["God"] * 500, ["the"] * 1000]
    marked = text_batches(
        sources, tokenizer, batch_size=8, sequence_length=16, weights=[0.75, 0.25],
        streaming=streaming, add_bos=False,
    )  # fmt: skip
    ids = np.concatenate([x["input_ids"].ravel() for x in take(marked, 60)])
    ratio = np.isin(ids, a).sum() / len(a) / (np.isin(ids, b).sum() / len(b))
    # Rows are drawn 3 to 1 in memory, documents when streaming; one kind fills its rows alike.
    expected = 3.0 if streaming else 3.0 * (len(b) + 1) / (len(a) + 1)
    assert abs(ratio / expected - 1) < 0.15


@pytest.mark.parametrize("streaming", [False, True])
def test_a_corpus_shorter_than_a_row_trains(tokenizer, streaming):
    batches = text_batches(
        ["In the beginning"], tokenizer, batch_size=4, sequence_length=64, streaming=streaming
    )
    for batch in take(batches, 3):
        assert batch["input_ids"].shape == (4, 64) and (batch["segment_ids"] > 0).any(axis=1).all()
    finite = list(text_batches(["In the"], tokenizer, batch_size=4, sequence_length=64, epochs=1))
    assert len(finite) == 1 and (finite[0]["segment_ids"] > 0).any(axis=1).sum() == 1


def test_eval_is_one_pass_in_order(docs, tokenizer):
    batches = eval_batches(docs, tokenizer, batch_size=B, sequence_length=T)
    tokens = tokenize(docs, tokenizer).tokens
    first = list(batches)
    assert len(first) == len(batches) == -(-len(tokens) // (B * T))
    same(list(batches), first)  # a second pass starts anew
    ids = np.concatenate([b["input_ids"].ravel() for b in first])
    segments = np.concatenate([b["segment_ids"].ravel() for b in first])
    np.testing.assert_array_equal(ids[segments > 0], tokens)
    assert batches.tokens == len(tokens)
    assert (first[-1]["segment_ids"][-1] == 0).all()
    parts = [
        list(
            eval_batches(
                docs, tokenizer, batch_size=B, sequence_length=T, process_index=p, process_count=2
            )
        )
        for p in range(2)
    ]
    same([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)], first)


def test_device_prefetch(docs, tokenizer):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    whole = take(make(docs, tokenizer), 8)
    placed = DevicePrefetch(make(docs, tokenizer), sharding, depth=3)
    same([jax.device_get(b) for b in take(placed, 3)], whole[:3])
    state = placed.get_state()
    batch = next(placed)
    assert batch["input_ids"].sharding == sharding and batch["input_ids"].shape == (B, T)
    again = DevicePrefetch(make(docs, tokenizer), sharding)
    next(again)
    again.set_state(state)
    same([jax.device_get(b) for b in take(again, 5)], whole[3:])
    finite = DevicePrefetch(iter(whole), sharding, depth=3)
    assert len(list(finite)) == 8
    with pytest.raises(DataError, match="depth=0"):
        DevicePrefetch(iter(whole), sharding, depth=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"sequence_length": 0}, "sequence_length=0 must be at least 1"),
        ({"sequence_length": 0, "streaming": True}, "sequence_length=0 must be at least 1"),
        ({"process_index": 0, "process_count": 3}, "batch_size=4 .* does not divide by 3"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 is not one of"),
        ({"weights": [1]}, "1 weights for 2 sources"),
        ({"weights": [1, 0]}, "must be positive"),
        ({"weights": [1, float("nan")]}, "must be positive"),
        ({"weights": [1, 1], "epochs": 2}, "weighted mixture has no epochs"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"streaming": True, "epochs": 1}, "streaming=True repeats for ever"),
        ({"streaming": True, "pack": False}, "streaming=True repeats for ever"),
        ({"text_field": "body"}, None),
    ],
    ids=str,
)
def test_bad_arguments(docs, tokenizer, options, message):
    if message is None:
        message = 'example 0 has no text in field "body"'
        docs = [{"text": d} for d in docs]
    with pytest.raises(DataError, match=message):
        make(docs, tokenizer, **options)


@pytest.mark.parametrize("sources", [[], [[]], [[""], []], ["", ""]])
@pytest.mark.parametrize("streaming", [False, True])
def test_empty_corpus(tokenizer, sources, streaming):
    if streaming and sources == ["", ""]:
        pytest.skip("a stream of empty documents is a stream of BOS EOS")
    with pytest.raises(DataError, match="empty corpus"):
        text_batches(sources, tokenizer, batch_size=2, sequence_length=8, streaming=streaming)


def test_states_that_do_not_belong(docs, tokenizer):
    batches = make(docs, tokenizer)
    state = batches.get_state()
    with pytest.raises(DataError, match="seed was 7, is 8; restore these settings"):
        make(docs, tokenizer, seed=8).set_state(state)
    with pytest.raises(DataError, match="batch_size was 4, is 8"):
        make(docs, tokenizer, batch_size=8).set_state(state)
    with pytest.raises(DataError, match=r"tokens was \[\d+\], is \[\d+\]"):
        make(docs[:-1], tokenizer).set_state(state)
    with pytest.raises(DataError, match=r"resume the data: checksums was"):
        make(docs[:5][::-1] + docs[5:], tokenizer).set_state(state)  # other order, same tokens
    with pytest.raises(DataError, match="not the state of a text iterator"):
        batches.set_state({"step": 3})
    streamed = make(docs, tokenizer, streaming=True, process_index=0, process_count=2).get_state()
    with pytest.raises(DataError, match="lacks rows 0 to 3; pass the joined states"):
        make(docs, tokenizer, streaming=True).set_state(streamed)
    last = make(docs, tokenizer, streaming=True, process_index=1, process_count=2).get_state()
    with pytest.raises(DataError, match="positions of some processes are missing"):
        make(docs, tokenizer, streaming=True).join_states([last])
    with pytest.raises(DataError, match="an older stream, without lanes"):
        make(docs, tokenizer, streaming=True).set_state({**streamed, "position": {"next": 3}})
    finite = make(docs, tokenizer, epochs=1)
    with pytest.raises(DataError, match="cannot resume the data: .*out of range"):
        finite.set_state({**finite.get_state(), "position": {"next_index": 10**6}})


def test_a_stream_is_not_resumed_on_other_texts_or_words(tokenizer, texts):
    def stream(docs, words=tokenizer):
        return text_batches(docs, words, batch_size=2, sequence_length=8, streaming=True)

    docs = [f"number {i} of the documents" for i in range(40)]
    state = stream(docs).get_state()
    stream(docs).set_state(state)
    with pytest.raises(DataError, match="samples was"):
        stream(docs[::-1]).set_state(state)
    with pytest.raises(DataError, match="samples was"):
        stream(docs, train_sentencepiece(texts, None, 600)).set_state(state)


def test_bad_example_deep_in_a_stream(tokenizer):
    batches = text_batches(
        ["fine"] * 3 + [{"no": "text"}], tokenizer, batch_size=2, sequence_length=8,
        streaming=True, shuffle=False,
    )  # fmt: skip
    with pytest.raises(DataError, match="example 3 has no text"):
        take(batches, 20)


def test_close(docs, tokenizer):
    batches = make(docs, tokenizer)
    assert isinstance(batches, TextBatches) and iter(batches) is batches
    next(batches)
    batches.close()


def test_a_large_vocabulary_packs(texts):
    """Ids above 255 survive the compact storage."""
    tokenizer = train_sentencepiece(texts, None, 600)
    ids = next(text_batches(texts, tokenizer, batch_size=1, sequence_length=64))["input_ids"]
    assert ids.max() > 255
