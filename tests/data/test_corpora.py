"""The shipped corpora."""

import re
from importlib import resources

import pytest

from fmjax.core.errors import DataError
from fmjax.data import load_corpus, sentiment, train_validation_split


def test_kjv():
    documents = load_corpus("kjv")
    assert len(documents) == 1189
    assert documents[0].startswith("In the beginning God created the heaven and the earth. And")
    assert documents[-1].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    assert not any(re.search(r"\d", d) for d in documents)  # every label is gone


def test_movie_reviews():
    examples = load_corpus("movie_reviews")
    assert len(examples) == 8000
    assert examples[0]["rating"] == -1.0 and examples[0]["text"].startswith("As self aware")
    assert all(-4 <= e["rating"] <= 4 for e in examples)
    labelled = sentiment(examples)
    assert {e["label"] for e in labelled} == {0, 1}
    assert all(e["label"] == (e["rating"] > 0.5) for e in labelled)
    assert len(labelled) == sum(abs(e["rating"]) > 0.5 for e in examples)


@pytest.mark.parametrize("name", ["kjv", "movie_reviews"])
def test_splits(name):
    train, validation = load_corpus(name, "train"), load_corpus(name, "validation")
    everything = load_corpus(name)
    assert len(validation) == round(0.05 * len(everything))
    assert len(train) + len(validation) == len(everything)
    assert all(x in everything and x not in train for x in validation[:20])


def test_split_is_fixed():
    train, validation = train_validation_split(range(10), 0.3)
    assert (train, validation) == ([0, 1, 2, 3, 5, 6, 8], [4, 7, 9])
    assert train_validation_split(range(10), 0.3, seed=1)[1] != validation
    assert train_validation_split(["a"], 0.5) == (["a"], [])
    assert train_validation_split(["a", "b"], 0) == (["a", "b"], [])


def test_bad_input():
    with pytest.raises(DataError, match='no corpus "wiki"; there are "kjv"'):
        load_corpus("wiki")
    with pytest.raises(DataError, match='no split "test"'):
        load_corpus("kjv", "test")
    with pytest.raises(DataError, match="fraction 1 is not in"):
        train_validation_split([1], 1)


def test_licences_are_named():
    readme = resources.files("fmjax.data").joinpath("corpora", "README.md").read_text()
    assert "Public domain" in readme and "MIT" in readme and "Hutto" in readme
