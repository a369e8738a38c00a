"""Stratified splits, texts in two places, and rows that are left out with a count."""

import collections

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import leave_out, normalise, overlap, read_classification, stratified_split


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_classes_keep_their_share(fraction):
    labels = np.random.RandomState(0).choice(4, 1000, p=[0.6, 0.3, 0.09, 0.01]).tolist()
    train, held_out = stratified_split(labels, fraction, seed=1)
    assert sorted(train + held_out) == list(range(1000))
    assert train == sorted(train) and held_out == sorted(held_out)
    assert len(held_out) == round(fraction * 1000)
    total, held = collections.Counter(labels), collections.Counter(labels[i] for i in held_out)
    assert all(abs(held[k] - fraction * total[k]) <= 1 for k in total)


def test_every_class_is_on_both_sides():
    labels = ["a"] * 50 + ["b"] * 2 + ["c"] + ["d"] * 3
    for fraction in (0.01, 0.1, 0.99):
        train, held_out = stratified_split(labels, fraction)
        assert {labels[i] for i in held_out} == {"a", "b", "d"}
        assert {labels[i] for i in train} == {"a", "b", "c", "d"}


def test_the_seed_decides():
    labels = [0, 1] * 50
    assert stratified_split(labels, 0.2, 5) == stratified_split(labels, 0.2, 5)
    assert stratified_split(labels, 0.2, 5) != stratified_split(labels, 0.2, 6)
    assert stratified_split([0, 1] * 5, 0.2)[1] == [4, 7]  # for ever


@pytest.mark.parametrize("size", [2, 5, 20, 500])
def test_numbers_are_spread(size):
    labels = np.random.RandomState(0).standard_normal(size).tolist()
    _, held_out = stratified_split(labels, 0.2)
    assert len(held_out) == max(round(0.2 * size), 1)
    assert stratified_split([[x, 0.0] for x in labels], 0.2)[1] == held_out
    if size == 500:
        ranks = np.argsort(np.argsort(labels))[held_out]
        assert (np.bincount(ranks // 50) == 10).all()


def test_multi_label():
    labels = (np.random.RandomState(0).rand(400, 5) < [0.5, 0.3, 0.1, 0.05, 0.01]).astype(int)
    train, held_out = stratified_split(labels.tolist(), 0.2)
    assert sorted(train + held_out) == list(range(400))
    assert abs(len(held_out) - 80) <= 8
    total, held = labels.sum(axis=0), labels[held_out].sum(axis=0)
    assert (np.abs(held - 0.2 * total) <= 3).all() and (held > 0).all() and (held < total).all()


def test_bad_splits():
    for fraction in (0, 1, -0.5):
        with pytest.raises(DataError, match="choose one between 0 and 1"):
            stratified_split([0, 1], fraction)
    with pytest.raises(DataError, match="cannot be split; give at least two"):
        stratified_split([0], 0.5)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("It's  GOOD!", "it s good", True),
        ("ﬁne — “really”", "Fine really", True),
        ("Straße\n\tA", "STRASSE a", True),
        ("good :)", "good :(", True),
        ("!!!", "???", False),
        ("good 😀", "good 😡", False),
        ("हिन्दी", "हनद", False),  # vowel signs are no punctuation
    ],
)
def test_normalise(a, b, equal):
    assert (normalise(a) == normalise(b)) is equal


TRAIN = ["Good film.", "bad film", "good  FILM", "Bad film!", "odd", "fine", "fine"]
LABELS = [1, 0, 1, 1, 0, 1, 1]


def test_overlap():
    found = overlap(TRAIN, ["new", "GOOD FILM!", "odd?", "odd"], LABELS)
    assert found.test == (1, 2, 3) and found.train == (0, 2, 4)
    assert found.repeated == (2, 3, 6) and found.conflicting == ((1, 3),)
    assert str(found) == (
        "3 of 4 test rows are also in the training data (3 of its 7 rows); 3 training rows repeat "
        "an earlier one; 2 training rows of 1 texts have conflicting labels"
    )
    assert overlap(TRAIN, []).conflicting == ()


def test_pairs_overlap_by_both_texts():
    train, test = [("a", "b"), ("a", "c")], [("A", "b!"), ("b", "a"), ("ab", "")]
    found = overlap(train, test)
    assert found.test == (0,) and found.train == (0,) and found.repeated == ()


def test_what_is_left_out_is_counted(tmp_path):
    path = tmp_path / "a.tsv"
    rows = [f"{text}\t{label}\n" for text, label in zip(TRAIN, LABELS, strict=True)]
    path.write_text("text\tlabel\n" + "".join(rows))
    data = read_classification(path)
    found = overlap(data.keys(), [("odd",)], data.labels)
    less = leave_out(
        data,
        {
            "also in the test data": found.train,
            "with conflicting labels": [i for group in found.conflicting for i in group],
            "repeated": found.repeated,
            "too long": [],
        },
    )
    assert less.texts == ["Good film.", "fine"] and less.labels == [1, 1]
    assert [less.where(i)[-6:] for i in range(2)] == ["line 2", "line 7"]
    assert str(less.report) == (
        "2 of 7 rows; left out: 1 also in the test data; 2 with conflicting labels; 2 repeated"
    )
    part = leave_out(data.select([0, 1, 2]), {"repeated": [2]})  # a part counts itself alone
    assert str(part.report) == "2 of 3 rows; left out: 1 repeated"
    again = leave_out(less, {"repeated": [0]})
    assert again.report.dropped["repeated"] == 3 and again.report.kept == len(again) == 1
    with pytest.raises(DataError, match="no row would be left: 0 of 7 rows; left out"):
        leave_out(less, {"repeated": [0, 1]})
