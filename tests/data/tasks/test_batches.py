"""Padded batches of labelled examples: shapes, epochs, resumption, process shares."""

import itertools
import json

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import eval_task_batches, task_batches

B, N, PAD = 4, 11, 9
BUCKETS = (4, 8, 16)
# Example i holds 1 + i·3 % 13 tokens, all of id 100 + i.
LENGTHS = [1 + i * 3 % 13 for i in range(N)]
FEATURES = [{"input_ids": [100 + i] * LENGTHS[i], "labels": i % 3} for i in range(N)]


def make(features=FEATURES, batch_size=B, **options):
    options = {"pad_id": PAD, "max_length": 16, "length_buckets": BUCKETS, "seed": 3} | options
    return task_batches(features, batch_size, **options)


def evaluation(features=FEATURES, batch_size=B, **options):
    options = {"pad_id": PAD, "max_length": 16, "length_buckets": BUCKETS} | options
    return eval_task_batches(features, batch_size, **options)


def take(batches, n):
    return list(itertools.islice(batches, n))


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def examples(batches):
    """The examples in the rows that count, in order."""
    rows = [b["input_ids"][b["example_weight"] > 0] for b in batches]
    return [int(row[0]) - 100 for batch in rows for row in batch]


def test_a_batch():
    batch = next(make(shuffle=False))
    assert set(batch) == {"input_ids", "attention_mask", "example_weight", "labels"}
    longest = max(LENGTHS[:B])
    width = next(b for b in BUCKETS if b >= longest)
    for i in range(B):
        row = [100 + i] * LENGTHS[i] + [PAD] * (width - LENGTHS[i])
        assert batch["input_ids"][i].tolist() == row
        assert batch["attention_mask"][i].tolist() == [int(t != PAD) for t in row]
    assert batch["labels"].tolist() == [0, 1, 2, 0]
    assert batch["example_weight"].tolist() == [1.0] * B
    kinds = {key: value.dtype.name for key, value in batch.items()}
    assert kinds.pop("example_weight") == "float32" and set(kinds.values()) == {"int32"}


def test_every_example_once_an_epoch_and_no_batch_is_short():
    seen = take(make(), N)  # N batches of B rows are B epochs
    assert all(b["example_weight"].all() and len(b["labels"]) == B for b in seen)
    rows = examples(seen)
    epochs = [rows[i * N : (i + 1) * N] for i in range(B)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == B  # a new order each
    assert examples(take(make(seed=4), 3)) != rows[: 3 * B]
    assert examples(take(make(shuffle=False), 4)) == [*range(N), *range(16 - N)]


def test_finite_epochs_end_in_a_filled_batch():
    batches = list(make(epochs=2))
    assert len(batches) == 6 and sorted(examples(batches)) == sorted([*range(N), *range(N)])
    last = batches[-1]
    assert last["example_weight"].tolist() == [1, 1, 0, 0]
    assert last["attention_mask"].any(axis=1).all()  # attention over nothing may be NaN


def test_a_batch_larger_than_the_data():
    batch = next(make(FEATURES[:3], batch_size=8))
    counts = np.bincount(batch["input_ids"][:, 0] - 100)
    assert batch["example_weight"].all() and sorted(counts) == [2, 3, 3]


def test_lengths_are_buckets():
    widths = {b["input_ids"].shape for b in take(make(), 40)}
    assert widths == {(B, 4), (B, 8), (B, 16)}
    only = {"length_buckets": (), "batch_size": 1}
    assert {b["input_ids"].shape[1] for b in take(make(**only), N)} == {16}
    assert {b["input_ids"].shape[1] for b in take(make(max_length=None, **only), N)} == {13}
    rounded = take(make(pad_multiple=6, batch_size=1), N)
    assert {b["input_ids"].shape[1] for b in rounded} == {6, 12, 18}


def test_grouped_by_length():
    """Every example once an epoch still; batches within an epoch are of neighbours in length."""
    n = 42
    features = [{"input_ids": [100 + i] * (1 + i * 5 % n)} for i in range(n)]
    options = {"max_length": 64, "length_buckets": range(1, 64), "group_by_length": True}
    batches = take(make(features, **options), n)  # B epochs
    rows = examples(batches)
    epochs = [rows[i * n : (i + 1) * n] for i in range(B)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    spans = [np.ptp(b["attention_mask"].sum(axis=1)) for b in batches]
    across = sum(span > 5 for span in spans)  # those with rows of two epochs, and epochs' remains
    assert across <= B + 1
    widths = [b["input_ids"].shape[1] for b in batches]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)
    padded, plain = (
        sum(b["input_ids"].size for b in take(make(features, **options | other), n))
        for other in ({}, {"group_by_length": False})
    )
    assert padded < 0.8 * plain


@pytest.mark.parametrize(
    "options",
    [
        {}, {"shuffle": False, "prefetch": 0}, {"epochs": 7}, {"batch_size": 16},
        {"group_by_length": True}, {"group_by_length": True, "batch_size": 16},
    ],
    ids=str,
)  # fmt: skip
def test_resumes_exactly(options):
    whole = take(make(**options), 17)
    for stop in (0, 1, 3, 5):
        first = make(**options)
        same(take(first, stop), whole[:stop])
        state = json.loads(json.dumps(first.get_state()))
        next(first)  # what happens after the state was taken does not matter
        second = make(**options)
        take(second, 2)
        second.set_state(state)
        same(take(second, 17 - stop), whole[stop:])


def test_states_that_do_not_belong():
    state = make().get_state()
    changed = [{**FEATURES[0], "labels": 2}, *FEATURES[1:]]
    for other, message in [
        (make(seed=4), "seed was 3, is 4; restore"),
        (make(batch_size=8), "batch_size was 4, is 8"),
        (make(FEATURES[:-1]), "examples was 11, is 10"),
        (make(changed), "cannot resume the data: checksum was"),
        (make(max_length=13), "length_buckets was"),
    ]:
        with pytest.raises(DataError, match=message):
            other.set_state(state)


@pytest.mark.parametrize(
    "maker", [lambda **k: take(make(**k), 9), lambda **k: list(evaluation(**k))]
)
def test_processes_share_the_same_global_batch(maker):
    single = maker()
    parts = [maker(process_index=p, process_count=4) for p in range(4)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    same(joined, single)


def test_evaluation_is_one_pass():
    plain = evaluation(sort_by_length=False)
    first = list(plain)
    assert len(first) == len(plain) == 3
    same(list(plain), first)  # a second pass starts anew
    assert examples(first) == list(range(N))
    assert first[-1]["example_weight"].tolist() == [1, 1, 1, 0]


def test_evaluation_sorted_by_length_gives_the_order_back():
    batches = evaluation()
    widths = [b["input_ids"].shape[1] for b in batches]
    assert widths == sorted(widths, reverse=True) and widths[-1] == 4
    assert sorted(examples(batches)) == list(range(N))
    ids = batches.in_order([b["input_ids"] for b in batches])
    for i, row in enumerate(ids):
        assert row[: batches.lengths[i]].tolist() == FEATURES[i]["input_ids"]
    assert [int(x) for x in batches.in_order([b["labels"] for b in batches])] == [
        f["labels"] for f in FEATURES
    ]
    with pytest.raises(DataError, match="1 outputs for 3 batches"):
        batches.in_order([np.zeros(B)])


def test_token_labels_and_types():
    features = [
        {
            "input_ids": [5] * (i + 1),
            "token_type_ids": [0] * i + [1],
            "labels": [i] * (i + 1),
            "start_positions": i,
        }
        for i in range(3)
    ]
    batch = next(iter(evaluation(features, sort_by_length=False)))
    assert batch["labels"].tolist() == [
        [0, -100, -100, -100],
        [1, 1, -100, -100],
        [2, 2, 2, -100],
        [-100] * 4,  # filling
    ]
    assert batch["token_type_ids"][:3].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert batch["start_positions"].tolist()[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "shape"), [([0.5, 1.0, 0.0], (2, 3)), (0.25, (2,)), (np.float32(1), (2,))], ids=str
)
def test_float_labels(labels, shape):
    batch = next(make([{"input_ids": [1], "labels": labels}], batch_size=2))
    assert batch["labels"].shape == shape and batch["labels"].dtype == np.float32


def test_several_texts_an_example():
    features = [
        {
            "input_ids": [[1], [2] * 3, [3] * (i + 1)],
            "token_type_ids": [[0], [0] * 3, [0] * (i + 1)],
        }
        for i in range(5)
    ]
    batch = next(make(features, shuffle=False))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (B, 3, 4)
    assert batch["token_type_ids"].shape == (B, 3, 4)
    assert batch["input_ids"][1].tolist() == [[1, PAD, PAD, PAD], [2, 2, 2, PAD], [3, 3, PAD, PAD]]
    assert batch["attention_mask"][1].sum(axis=1).tolist() == [1, 3, 2]
    scored = [{"input_ids": [[1], [2]], "labels": 0.5}]
    assert next(make(scored, batch_size=1))["labels"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, "no examples to make batches of"),
        ([{"labels": 1}], {}, "example 0 has no tokens"),
        ([{"input_ids": []}], {}, "example 0 has no tokens"),
        ([{"input_ids": [[1], []]}], {}, "example 0 has no tokens"),
        ([{"input_ids": [1]}, {"input_ids": [1] * 17}], {}, "example 1 has 17 tokens, more than"),
        ([{"input_ids": [1, 2], "labels": [1, 0, 0]}], {}, '3 values of "labels" for 2 tokens'),
        (
            [{"input_ids": [1], "labels": 1}, {"input_ids": [1], "labels": 0.5}],
            {},
            'example 1 has float32 as "labels", example 0 has int32; give all',
        ),
        ([{"input_ids": [1], "labels": 1}, {"input_ids": [1]}], {}, 'nothing as "labels"'),
        ([{"input_ids": [[1], [1]]}, {"input_ids": [[1]]}], {}, "a list of tokens as"),
        ([{"input_ids": [1], "id": "x7"}], {}, "example 0 has \"id\"='x7'; a field is a number"),
        (
            [{"input_ids": [1], "spans": [[1], [1, 2]]}],
            {},
            r'"spans"=\[\[1\], \[1, 2\]\]; a field is',
        ),
        ([{"input_ids": [1], "spans": [[1, 2]]}], {}, "a field is a number, a list of integers"),
        (FEATURES, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (FEATURES, {"epochs": 0}, "epochs=0 must be at least 1"),
        (FEATURES, {"prefetch": -1}, "prefetch=-1"),
        (FEATURES, {"group_by_length": True, "shuffle": False}, "leave out shuffle=False"),
        (FEATURES, {"length_buckets": (0,)}, "must be at least 1"),
        (FEATURES, {"pad_multiple": 0}, "must be at least 1"),
        (FEATURES, {"process_index": 0, "process_count": 3}, "does not divide by 3"),
    ],
)
def test_bad_features_and_arguments(features, options, message):
    with pytest.raises(DataError, match=message):
        make(features, **options)
    if "epochs" not in options and "shuffle" not in options:
        with pytest.raises(DataError, match=message):
            evaluation(features, **options)
